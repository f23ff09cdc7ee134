"""Texts that a model makes itself, with their states."""
