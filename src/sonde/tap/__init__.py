"""Turn a live PyTorch model into a stream of rows; only this package touches modules and hooks."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
