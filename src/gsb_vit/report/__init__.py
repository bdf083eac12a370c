"""What people look at: tables, the HTML page, charts and masks."""
