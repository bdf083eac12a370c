"""A page that runs packed models in any browser, offline: ``gsb-vit app``."""
