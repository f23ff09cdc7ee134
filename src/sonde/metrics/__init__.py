"""How well scores tell, with intervals over groups: for labelled rows, steps, pixels."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
