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
    found = load(model, **options)
    plain = unpacked(found)
    if plain is found:
        return found, ()
    return plain, (
        f"note: {found.name}: packed layers are unpacked, because no gradient flows through "
        "packed layers",
    )
