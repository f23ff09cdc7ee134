"""The shared sketches: mergeable statistics that many methods read, and the maths they share."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
