"""Names of the classes that a served classifier answers with."""

from collections.abc import Mapping, Sequence
from typing import Any

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data import opening
from sonde.run.fitting.header import OWN_LABELS


def names_of_outputs(
    model: Model, typed: str | Sequence[str] | None, data: Mapping[str, Any], n_outputs: int
) -> tuple[str, ...]:
    """Return one name for each output of a classifier.

    The names are those that the user typed, else the model's own, else the labels of the probe's
    data if the fit saw that they are in the order of the outputs, else ``class 0``, ``class 1``.
    Labels in sorted order are no names of outputs: a model that is 99 % correct on low, mid and
    high would be answered with the names of other classes.

    Parameters
    ----------
    model : Model
        The served model.
    typed : str, sequence of str or None
        Names of all outputs in order, a file of names, or None.
    data : mapping
        Field ``data`` of the probe's header; empty without a probe.
    n_outputs : int
        Number of logits.

    Raises
    ------
    InputError
        If another number of names was typed.
    """
    given = opening.names_of_classes(typed)
    if given and len(given) != n_outputs:
        raise InputError(
            f"serve: expected {n_outputs} class names, one for each output of the model, got "
            f"{len(given)} ({', '.join(given[:3])}, ...). Name every output, in order."
        )
    if given:
        return given
    fitted = data.get("label_names", ()) if data.get(OWN_LABELS) else ()
    own = opening.class_names(model) or dict(enumerate(map(str, fitted)))
    if not own.keys() <= {*range(n_outputs)}:
        own = {}  # labels of data that were added later, or of another head
    return tuple(own.get(i, f"class {i}") for i in range(n_outputs))


def class_index(names: Sequence[str], truth: str | float) -> int | None:
    """Return the index of a class given by name or by index, or None if no class is meant.

    A name wins over an index: with the classes "2" and "1", the truth 1 is the second class.
    """
    text = f"{truth:.0f}" if isinstance(truth, float) and truth.is_integer() else str(truth)
    if text in names:
        return names.index(text)
    index = int(text) if text.isdecimal() else -1
    return index if 0 <= index < len(names) and not isinstance(truth, str) else None
