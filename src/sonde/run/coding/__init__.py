"""Lossless compression of files by a model that predicts them."""
