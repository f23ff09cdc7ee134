"""Explanations of a model on data, judged in the same run."""
