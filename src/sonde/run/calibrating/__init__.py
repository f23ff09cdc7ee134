"""``sonde.calibrate``: the scores of other rows become p-values and thresholds."""
