"""Rows on disk: Arrow files of aligned ranges of units, readable without sonde."""

from sonde.store.cleared import Cleared
from sonde.store.describe import describe_store
from sonde.store.growing import add_sites, append_store
from sonde.store.keeping import KeptRows
from sonde.store.policy import Policy
from sonde.store.reading import Store
from sonde.store.soundness import Fault, Soundness, repair
from sonde.store.verifying import is_store, verify_store
from sonde.store.writing import write_store

__all__ = [
    "Cleared",
    "Fault",
    "KeptRows",
    "Policy",
    "Soundness",
    "Store",
    "add_sites",
    "append_store",
    "describe_store",
    "is_store",
    "repair",
    "verify_store",
    "write_store",
]
