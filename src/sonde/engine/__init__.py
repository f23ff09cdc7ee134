"""Rows to states to results, in memory: requests, passes, folding, joining and error bars."""

from sonde.engine.running import Running

__all__ = ["Running"]
