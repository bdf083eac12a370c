"""Pictures: data specs, the split, preprocessing. NumPy and Pillow only."""
