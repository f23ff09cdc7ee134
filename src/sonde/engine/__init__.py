"""In-memory computation from rows to states to results, with merging and error bars."""

from sonde.engine.running import Running

__all__ = ["Running"]
