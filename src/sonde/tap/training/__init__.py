"""Losses at sites of a model in training."""
