"""What a bundle holds that a comparison can read: stored states, or what follows from them."""

from dataclasses import dataclass
from typing import Any

import torch

from sonde.core.instrument import WIDEST_FULL, Every
from sonde.core.passes import merge_pair
from sonde.core.requests import Request
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.run.fitted import Fitted
from sonde.stats import (
    ClassMoments,
    ClassMomentsState,
    HashSample,
    HashSampleState,
    Moments,
    MomentsState,
)

PARTS = (("all",), ("fit", "held"), ("fit",), ("held",))
WORDS = {"fit": "rows not held out", "held": "rows held out"}


@dataclass(frozen=True)
class Evidence:
    """A state and the rows that it is about: all of them, a part, or a sample."""

    state: State
    basis: str = "all rows"


def evidence(bundle: Fitted, statistic: Statistic[Any], key: str) -> Evidence | None:
    """Return the state of a statistic over all rows of a site, or the next best that is at hand.

    In this order: the stored state; moments from those of classes; what the stored sample of rows
    gives. None where the bundle holds nothing of the kind.
    """
    found = stored(bundle, statistic, key)
    if found is None and isinstance(statistic, HashSample):
        return sample(bundle, key, statistic.m) if statistic.column == "x" else None
    if found is None and statistic == Moments():
        found = _from_classes(bundle, key)
    return _from_sample(bundle, statistic, key) if found is None else found


def stored(bundle: Fitted, statistic: Statistic[Any], key: str) -> Evidence | None:
    """Return the stored state of a statistic over every row of a site, or of the part there is."""
    for parts in PARTS:
        ids = [Request(statistic, (key,), Every(), part).id for part in parts]  # pyright: ignore[reportArgumentType]
        if all(bundle.states.get(i) is not None for i in ids):
            merged: State | None = None
            for i in ids:
                merged = merge_pair(statistic, merged, bundle.states[i])
            assert merged is not None  # every one of them is there
            return Evidence(
                merged, WORDS.get(parts[0], "all rows") if len(parts) == 1 else "all rows"
            )
    return None


def sample(bundle: Fitted, key: str, m: int = HashSample().m) -> Evidence | None:
    """Return the largest sample of rows at a site, cut to the ``m`` of smallest draw."""
    kinds = {
        request.statistic: None
        for request in bundle.requests.values()
        if isinstance(request.statistic, HashSample)
        and (request.statistic.column, request.keys, request.where) == ("x", (key,), Every())
    }
    made = [found for kind in kinds if (found := _cut(bundle, kind, key, m)) is not None]
    return max(made, key=lambda e: len(e.state.draw), default=None)  # type: ignore[attr-defined]


def _cut(bundle: Fitted, kind: Statistic[Any], key: str, m: int) -> Evidence | None:
    found = stored(bundle, kind, key)
    if found is None or not isinstance(found.state, HashSampleState):
        return None
    state = found.state
    kept = state.whole_groups() if isinstance(kind, HashSample) and kind.groups else slice(None)
    columns = (state.rows[kept], state.draw[kept], state.group[kept], state.group_draw[kept])
    smaller = HashSample(m).observe(*columns)
    return Evidence(
        HashSampleState(state.n, smaller.rows, smaller.draw, smaller.group, smaller.group_draw),
        found.basis,
    )


def _from_classes(bundle: Fitted, key: str) -> Evidence | None:
    """Return the moments of all rows from those of their classes."""
    for request in bundle.requests.values():
        kind = request.statistic
        full = isinstance(kind, ClassMoments) and kind.scatter in ("pooled", "full")
        if full and (request.keys, request.where) == ((key,), Every()):
            found = stored(bundle, kind, key)
            if found is not None and isinstance(found.state, ClassMomentsState):
                return Evidence(found.state.total, found.basis)
    return None


def _from_sample(bundle: Fitted, statistic: Statistic[Any], key: str) -> Evidence | None:
    """Return the state of the sampled rows, where a statistic asks for nothing else."""
    held = sample(bundle, key)
    if held is None or not {"x"} >= set(statistic.needs()):
        return None
    state = held.state
    assert isinstance(state, HashSampleState)  # as ``sample`` returns it
    if len(state.draw) == 0 or (statistic == Moments() and state.rows.shape[1] > WIDEST_FULL):
        return None
    with torch.no_grad():
        made = statistic.observe(state.rows)
    return Evidence(made, f"{held.basis}, {len(state.draw):,} sampled")


def moments(bundle: Fitted, key: str) -> MomentsState | None:
    """Return mean and scatter of a site, of its units alone where there is no more."""
    for kind in (Moments(), Moments("diag")):
        found = evidence(bundle, kind, key)
        if found is not None and isinstance(found.state, MomentsState):
            return found.state
    return None
