"""Each job of sonde on each architecture, beside plain torch (``python -m tools.matrix``)."""
