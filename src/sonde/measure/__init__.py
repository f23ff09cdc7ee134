"""Measures of hidden states: of one site, of a pair of sites, or of all layers together."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
