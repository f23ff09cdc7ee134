"""Models for commands that take gradients."""

from typing import TYPE_CHECKING, Any

from sonde.cli.console import REMARK, note

if TYPE_CHECKING:
    from sonde.core.inputs import Model


def load_for_gradients(name: str, **options: Any) -> "Model":
    """Return a model that gradients flow through; note it if packed layers were unpacked."""
    from sonde.data import load
    from sonde.weights import unpacked

    model = load(name, **options)
    plain = unpacked(model)
    if plain is not model:
        note(f"{REMARK}{name}: packed layers are unpacked, no gradient flows through them")
    return plain
