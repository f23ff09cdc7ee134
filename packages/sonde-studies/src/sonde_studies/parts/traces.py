"""Remaining information in the states about a class that a model should have forgotten."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sonde import InputError, Model, gather, read
from sonde_studies.parts.figures import error_of
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.states import with_module

SHOTS = (1, 4, 16)
DRAWS, LEAST, MOST, SHUFFLES = 3, 20, 400, 199
Side = tuple[Any, Any]
"""States and their classes."""


def shuffled(model: Model, seed: int) -> Model:
    """Return a copy of a model with the entries of each matrix shuffled."""
    module, draw = deepcopy(model.module), torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        if weight.ndim > 1:
            order = torch.randperm(weight.numel(), generator=draw).to(weight.device)
            weight.data = weight.data.flatten()[order].view_as(weight)
    return with_module(model, module)


def states_before_head(part: Any, of_class: str | None, side: str) -> Side:
    """Return the states before the head, of at most ``MOST`` rows, and their classes.

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
    """Return each model's states of the forget set and of the retain set.

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
    """Raise for too few rows, rows without a label, or classes in both sets.

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
            f"classes {shared} in both. Look at label_column; to audit rows, a person's rows or "
            "texts, give unseen ones as held."
        )


@dataclass(frozen=True, eq=False)
class Reading:
    """Correctness of a probe on both sets, row by row.

    Parameters
    ----------
    hits : array (forget row,)
        1 where the class is named right.
    alarms : array (retain row,)
        1 where a class of the forget side is named.
    """

    hits: Any
    alarms: Any

    def accuracy(self) -> float:
        """Balanced accuracy: 0.5 for a probe that always gives the same answer."""
        return float((self.hits.mean() + 1 - self.alarms.mean()) / 2)

    def beyond(self, other: "Reading") -> tuple[float, float]:
        """Return the gain in balanced accuracy over another reading of the rows, and its error."""
        rows = self.hits - other.hits, other.alarms - self.alarms
        error = math.hypot(*(error_of(r) for r in rows)) / 2
        return float(sum(r.mean() for r in rows) / 2), error


def relearned(forget: Side, retain: Side, seed: int) -> dict[int, Reading]:
    """Return a new head's results on unseen rows, by the number of rows it was trained on.

    The head is shown some forget examples and half of the retain side; readings are means over
    draws.
    """
    (x, label), draw = forget, np.random.default_rng(seed)
    learned, judged = _halves(retain)
    test = np.arange(1, len(x), 2)
    found: dict[int, list[Reading]] = {n: [] for n in SHOTS}
    for _ in range(DRAWS):
        order = 2 * draw.permutation((len(x) + 1) // 2)
        for n in SHOTS:
            few = order[:n]
            head = _head(x[few], label[few], *learned)
            found[n].append(_reading(head, (x[test], label[test]), judged))
    return {
        n: Reading(np.mean([r.hits for r in each], 0), np.mean([r.alarms for r in each], 0))
        for n, each in found.items()
    }


def read_by_old(states: Mapping[str, Sequence[Side]]) -> dict[str, Reading]:
    """Return each model's results with a head that was trained on half of either set before.

    Parameters
    ----------
    states : mapping of str to (forget, retain)
        Of each model; the head learns on those of ``before``. A model of another width is read as
        if the head named no row.
    """
    head, width = _old_head(states), states["before"][0][0].shape[1]
    found = dict[str, Reading]()
    for name, sides in states.items():
        forget, retain = (_halves(side)[1] for side in sides)
        same = forget[0].shape[1] == width
        nothing = Reading(np.zeros(len(forget[0])), np.zeros(len(retain[0])))
        found[name] = _reading(head, forget, retain) if same else nothing
    return found


def fits_by_chance(states: Mapping[str, Sequence[Side]], name: str, seed: int) -> float:
    """Return how often the old head fits a model equally well with permuted units.

    A model that was trained anew has its units in an order that says nothing to the old head.
    """
    head, draw = _old_head(states), np.random.default_rng(seed)
    (x, label), (others, kinds) = (_halves(side)[1] for side in states[name])
    if x.shape[1] != states["before"][0][0].shape[1]:
        return 1.0
    own = _reading(head, (x, label), (others, kinds)).accuracy()
    orders = [draw.permutation(x.shape[1]) for _ in range(SHUFFLES)]
    anew = [_reading(head, (x[:, o], label), (others[:, o], kinds)).accuracy() for o in orders]
    return (1 + sum(a >= own for a in anew)) / (1 + SHUFFLES)


def _halves(side: Side) -> tuple[Side, Side]:
    x, label = side
    return (x[::2], label[::2]), (x[1::2], label[1::2])


def _old_head(states: Mapping[str, Sequence[Side]]) -> Any:
    forget, retain = (_halves(side)[0] for side in states["before"])
    return _head(*forget, *retain)


def _reading(head: Any, forget: Side, retain: Side) -> Reading:
    (x, label), (others, kinds) = forget, retain
    alarms = np.isin(head.predict(others), np.setdiff1d(label, kinds))
    return Reading((head.predict(x) == label) * 1.0, alarms * 1.0)


def _head(x: Any, label: Any, others: Any, kinds: Any) -> Any:
    """Return a head trained on few forget examples, reweighted, and the other classes."""
    head = linear_head(1.0)
    weight = np.full(len(x), len(others) / len(set(kinds)) / len(x))
    weight = np.r_[weight, np.ones(len(others))]
    rows, labels = np.r_[x, others], np.r_[label, kinds]
    return head.fit(rows, labels, logisticregression__sample_weight=weight)
