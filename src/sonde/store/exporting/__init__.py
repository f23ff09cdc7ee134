"""A store as one file of another format: Parquet, arrays, or Lance with a vector index."""

from sonde.store.exporting.describe import describe_export
from sonde.store.exporting.export import SUFFIXES, check_export, export_store, is_export
from sonde.store.exporting.verifying import verify_export

__all__ = [
    "SUFFIXES",
    "check_export",
    "describe_export",
    "export_store",
    "is_export",
    "verify_export",
]
