"""Losses at sites of a model that is trained."""
