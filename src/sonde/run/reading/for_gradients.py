"""Load models for jobs that need gradients."""

from typing import Any

from sonde.core.inputs import Model
from sonde.run.reading.load import load
from sonde.weights import unpacked


def load_for_gradients(model: Any, **options: Any) -> tuple[Model, tuple[str, ...]]:
    """Return a model that gradients flow through, and a note if packed layers were unpacked.

    Parameters
    ----------
    model : str, path, Model or module
    **options
        Of ``sonde.load``.
    """
    loaded = load(model, **options)
    plain = unpacked(loaded)
    if plain is loaded:
        return loaded, ()
    return plain, (
        f"note: {loaded.name}: packed layers are unpacked, because no gradient flows through "
        "packed layers",
    )
