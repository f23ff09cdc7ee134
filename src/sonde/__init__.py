"""A probe for the hidden states of neural networks: read, fit, act."""

__version__ = "0.1.0"
