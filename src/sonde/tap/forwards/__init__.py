"""Rows of forwards that somebody else makes."""
