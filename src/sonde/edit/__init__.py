"""Change what a model computes: its activations, its next tokens, its weights."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
