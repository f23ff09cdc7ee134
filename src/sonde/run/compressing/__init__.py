"""Smaller models and caches, tried on a user's own data."""
