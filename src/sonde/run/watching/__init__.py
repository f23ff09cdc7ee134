"""``sonde.Guard``: fitted detectors on every forward pass of a live model."""
