"""From a live PyTorch model to a stream of rows: the only place that touches modules and hooks."""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
