"""``sonde.Track``: fitted states over the steps of a training run."""
