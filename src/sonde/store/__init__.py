"""Rows on disk: Arrow files of aligned ranges of units, readable without sonde."""

from sonde.store.describe import describe_store
from sonde.store.reading import Store
from sonde.store.writing import write_store

__all__ = ["Store", "describe_store", "write_store"]
