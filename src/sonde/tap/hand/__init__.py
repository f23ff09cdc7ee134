"""Taps and edits around a model that is used by hand."""
