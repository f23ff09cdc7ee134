"""Everything between a user's words for a model and for data and the nouns of ``core``.

``load`` gives a ``Model``, ``open_inputs`` gives ``Inputs`` for it, ``open_arrays`` a ``Stream`` of
feature arrays without a model.
"""

from sonde.core.special_ids import special_ids
from sonde.data._model_kind import task_of
from sonde.data.arrays import open_arrays
from sonde.data.contrast import contrast
from sonde.data.early import check_data
from sonde.data.inputs import ItemInputs
from sonde.data.kept import kept_for
from sonde.data.labels import Labels
from sonde.data.listing import Listing
from sonde.data.loading import load
from sonde.data.opening import open_inputs
from sonde.data.processors import PillowProcessor
from sonde.data.rows import rows_of
from sonde.data.shipped import Digits, StandardLibrary
from sonde.data.towers import reader_of

__all__ = [
    "Digits",
    "ItemInputs",
    "Labels",
    "Listing",
    "PillowProcessor",
    "StandardLibrary",
    "check_data",
    "contrast",
    "kept_for",
    "load",
    "open_arrays",
    "open_inputs",
    "reader_of",
    "rows_of",
    "special_ids",
    "task_of",
]
