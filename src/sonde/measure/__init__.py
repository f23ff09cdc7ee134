"""Figures about hidden states: one site, a pair, or all layers at once."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
