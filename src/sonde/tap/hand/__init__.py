"""Taps and edits for a model that the user runs by hand."""
