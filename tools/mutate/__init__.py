"""Changed formulas, and whether tests notice them."""
