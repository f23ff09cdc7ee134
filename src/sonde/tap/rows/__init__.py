"""Reduce raw outputs to rows: which tokens to include, how to average, where to store."""
