from sonde.core.special_ids import special_ids as special_ids
from sonde.data._model_kind import task_of as task_of
from sonde.data.arrays import open_arrays as open_arrays
from sonde.data.contrast import contrast as contrast
from sonde.data.different_rows import DifferentRows as DifferentRows
from sonde.data.different_rows import different_rows as different_rows
from sonde.data.different_rows import kept_rows as kept_rows
from sonde.data.different_rows import row_number as row_number
from sonde.data.early import check_data as check_data
from sonde.data.inputs import ItemInputs as ItemInputs
from sonde.data.kept import kept_for as kept_for
from sonde.data.labels import Labels as Labels
from sonde.data.listing import Listing as Listing
from sonde.data.loading import load as load
from sonde.data.opening import open_inputs as open_inputs
from sonde.data.processors import PillowProcessor as PillowProcessor
from sonde.data.rows import rows_of as rows_of
from sonde.data.sentence_encoder import similarity_to as similarity_to
from sonde.data.shipped import Digits as Digits
from sonde.data.shipped import StandardLibrary as StandardLibrary
from sonde.data.towers import reader_of as reader_of

__all__: list[str]
