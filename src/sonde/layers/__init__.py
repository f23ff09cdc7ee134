"""Layers to build into a network: plain torch modules, and functions that insert them."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
