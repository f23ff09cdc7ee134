"""Comparisons of two fitted bundles by their states, and of two models on the same inputs."""
