"""Base classes and shared types. This package imports no other package of sonde.

A name is imported when it is first used: errors and wording need no torch.
"""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
