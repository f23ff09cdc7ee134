"""Which states of a model carry the difference between its runs on two texts."""
