"""Ports inside an attention layer: queries, keys, values, probabilities and heads."""
