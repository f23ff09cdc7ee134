"""Ports inside an attention: queries, keys, values, probabilities and heads."""
