from sonde.store.cleared import Cleared as Cleared
from sonde.store.describe import describe_store as describe_store
from sonde.store.growing import add_sites as add_sites
from sonde.store.growing import append_store as append_store
from sonde.store.interference import Interference as Interference
from sonde.store.interference import interference as interference
from sonde.store.keeping import KeptRows as KeptRows
from sonde.store.policy import Policy as Policy
from sonde.store.reading import Store as Store
from sonde.store.soundness import Fault as Fault
from sonde.store.soundness import Soundness as Soundness
from sonde.store.soundness import repair as repair
from sonde.store.verifying import is_store as is_store
from sonde.store.verifying import verify_store as verify_store
from sonde.store.writing import write_store as write_store

__all__: list[str]
