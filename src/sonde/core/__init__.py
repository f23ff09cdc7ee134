"""The nouns that everything else plugs into. Nothing in here imports upward.

A name is imported when it is first used: errors and wording need no torch.
"""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
