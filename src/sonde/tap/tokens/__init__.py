"""Reduce the number of tokens inside a running model."""
