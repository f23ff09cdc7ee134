"""``sonde.Guard``: fitted detectors on every forward of a live model."""
