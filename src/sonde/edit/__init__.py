"""Change what a model computes: its activations, its next tokens, its weights."""

from sonde.edit.random_direction import RandomDirection

__all__ = ["RandomDirection"]
