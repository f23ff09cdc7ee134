"""How well scores tell usual from unusual rows, steps and pixels, with intervals over groups."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
