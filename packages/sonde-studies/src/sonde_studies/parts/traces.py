"""What the states of a model still tell of a class that it was made to forget."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from sonde import InputError, Model, gather, read
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.states import with_module

SHOTS = (1, 4, 16)
DRAWS, LEAST, MOST = 3, 20, 400
Side = tuple[Any, Any]
"""States and their classes."""


def shuffled(model: Model, seed: int) -> Model:
    """Return a copy of a model in which the entries of each matrix are shuffled."""
    module, draw = deepcopy(model.module), torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        if weight.ndim > 1:
            order = torch.randperm(weight.numel(), generator=draw).to(weight.device)
            weight.data = weight.data.flatten()[order].view_as(weight)
    return with_module(model, module)


def states_before_head(part: Any, of_class: str | None, side: str) -> Side:
    """Return the states before the answers, of at most ``MOST`` rows, and their classes.

    Parameters
    ----------
    part : what ``sonde.gather`` returns
    of_class : str, optional
        Name of one class: the side ``forget`` is its rows, any other side the rest.
    side : str
    """
    keys = [*part.rows]
    is_head = part.logits is not None and part.rows[keys[-1]].shape == part.logits.shape
    x = (part.rows[keys[-2]].double() if is_head and len(keys) > 1 else part.last).numpy()
    label = part.label.numpy()
    if of_class is not None:
        names = part.label_names or [str(k) for k in range(int(label.max()) + 1)]
        mine = (label == list(names).index(of_class)) == (side == "forget")
        x, label = x[mine], label[mine]
    return x[:MOST], label[:MOST]


def sides_of(
    recipe: str, models: Mapping[str, Model], data: tuple[Any, Any], of_class: str | None,
    progress: bool, **options: Any,
) -> dict[str, list[Side]]:  # fmt: skip
    """Return the states that each model has of what to forget and of what to retain.

    Parameters
    ----------
    recipe : str
        Named in errors.
    models : mapping of str to Model
    data : (data, data)
        Of either side.
    of_class : str, optional
        Name of the class to forget, where both sides are the same data.
    progress : bool
    **options
        Of ``sonde.read``.
    """
    found = {
        name: [
            states_before_head(gather(read(model, part, **options), progress), of_class, side)
            for side, part in zip(("forget", "retain"), data, strict=True)
        ]
        for name, model in models.items()
    }
    check_sides(recipe, *next(iter(found.values())))
    return found


def check_sides(recipe: str, forget: Side, retain: Side) -> None:
    """Raise if there are few rows on a side, rows without a label, or classes on both sides.

    Raises
    ------
    InputError
        If so, with what there is.
    """
    (x, label), (others, kinds) = forget, retain
    shared = sorted({*label.tolist()} & {*kinds.tolist()})
    if min(len(x), len(others)) < LEAST or (label < 0).any() or shared:
        raise InputError(
            f"{recipe}: expected {LEAST} or more labelled examples of classes that are in the "
            f"forget part alone, got {len(x)} to forget and {len(others)} to retain, with the "
            f"classes {shared} in both. Look at label_column."
        )


def relearned(forget: Side, retain: Side, seed: int) -> dict[int, float]:
    """Return the accuracy of a new head on unseen forget examples, by how many it was shown."""
    (x, label), draw = forget, np.random.default_rng(seed)
    found = np.zeros((DRAWS, len(SHOTS)))
    for i in range(DRAWS):
        order = draw.permutation(len(x))
        test = order[len(x) // 2 :]
        for j, n in enumerate(SHOTS):
            few = order[: min(n, len(x) // 2)]
            said = _head(x[few], label[few], *retain).predict(x[test])
            found[i, j] = (said == label[test]).mean()
    return dict(zip(SHOTS, found.mean(0).tolist(), strict=True))


def read_by_old(states: Mapping[str, Sequence[Side]]) -> dict[str, float]:
    """Return the accuracy on forget examples of a head that learned half of them before.

    Parameters
    ----------
    states : mapping of str to (forget, retain)
        Of each model; the head learns on those of ``before``.
    """
    (x, label), retain = states["before"]
    head, rest = _head(x[::2], label[::2], *retain), label[1::2]
    wide = {name: both[0][0][1::2] for name, both in states.items()}
    return {
        name: float((head.predict(rows) == rest).mean()) if rows.shape[1] == x.shape[1] else 0.0
        for name, rows in wide.items()
    }


def _head(x: Any, label: Any, others: Any, kinds: Any) -> Any:
    """Return a head that learned few forget examples, as heavy as another class, and the others."""
    head = linear_head(1.0)
    weight = np.full(len(x), len(others) / len(set(kinds)) / len(x))
    weight = np.r_[weight, np.ones(len(others))]
    rows, labels = np.r_[x, others], np.r_[label, kinds]
    return head.fit(rows, labels, logisticregression__sample_weight=weight)
