"""Fewer tokens inside a running model."""
