"""Gradients of parameters, separately for each row of a batch."""
