"""Rows of forward passes that the user's own code runs."""
