"""Explanations of a model on data, tested in the same run."""
