"""Smaller models and key-value caches, tested on a user's own data."""
