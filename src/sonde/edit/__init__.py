"""Change a model's activations, its next tokens, or its weights."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
