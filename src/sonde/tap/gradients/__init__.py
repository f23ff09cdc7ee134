"""Gradients of parameters for each row of a batch by itself."""
