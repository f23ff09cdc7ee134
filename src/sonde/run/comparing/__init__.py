"""Two fitted bundles held against each other, from their states alone."""
