"""Bundles: fitted states with their header in a file, and merges of several bundles."""
