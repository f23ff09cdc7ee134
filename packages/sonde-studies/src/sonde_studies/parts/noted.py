"""Parts of recipes whose arms note what they were given, for studies that compare them."""

from collections.abc import Iterable, Mapping
from typing import Any

from sklearn.model_selection import cross_val_predict  # pyright: ignore
from torch import nn

from sonde import Model
from sonde.data import ItemInputs
from sonde.train import Scope
from sonde_studies.arms import note, note_for, part
from sonde_studies.parts.heads import weights_of
from sonde_studies.parts.states import tuned_copy


def scored_apart(name: str, head: Any, x: Any, label: Any, folds: Any) -> Any:
    """Return the decision of a head on each row, fitted on the other folds.

    Parameters
    ----------
    name : str
        Name of the arm.
    head : sklearn estimator
    x : (row, ...)
    label : (row,)
    folds : sequence of pairs of index arrays
    """
    note_for(name, rows=len(label), parameters=weights_of(head, x, label))
    return cross_val_predict(head, x, label, cv=folds, method="decision_function")


def tuned_part(
    name: str, model: Model, data: ItemInputs, rule: Any, **options: Any
) -> tuple[Model, float]:
    """Return a copy that was tuned in the parameters of a rule, and their fraction of all.

    Parameters
    ----------
    name : str
        Name of the arm.
    model : Model
    data : ItemInputs
    rule : str or sequence of str
        Of ``Scope``.
    **options
        Of ``tuned_copy``.
    """
    with part(name):
        note(rows=len(data))
        return tuned_copy(model, data, Scope(rule), label=f"tune {name}", **options)


def note_views(
    head: Any, ways: Iterable[str], nets: Mapping[str, nn.Module], sizes: Iterable[int], rows: int
) -> None:
    """Note what each way to join views was given, for each number of views.

    Parameters
    ----------
    head : sklearn estimator
        Fitted; the ways in ``ways`` have as many weights.
    ways : iterable of str
    nets : mapping of str to nn.Module
        Ways with a net of their own.
    sizes : iterable of int
        Numbers of views.
    rows : int
        Sets that were learned.
    """
    linear: float = head[-1].coef_.size + head[-1].intercept_.size
    weights = dict.fromkeys(ways, linear)
    weights |= {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    for name, parameters in weights.items():
        for k in sizes:
            note_for(f"{name}, {k} views", rows=rows, parameters=parameters, passes=k)
