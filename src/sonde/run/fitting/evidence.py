"""States that a comparison can read from a bundle: stored, or computed from stored states."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from sonde.core.finite import finite_rows
from sonde.core.instrument import WIDEST_FULL, AsScored, Every, Where
from sonde.core.plan import Part
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.engine.passes import merge_pair
from sonde.engine.requests import Request
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.group_counts import counts_in
from sonde.stats import (
    ClassMoments,
    ClassMomentsState,
    HashSample,
    HashSampleState,
    Moments,
    MomentsState,
)

PARTS: tuple[tuple[Part, ...], ...] = (("all",), ("fit", "held"), ("fit",), ("held",))
READINGS: tuple[tuple[Where, tuple[Part, ...]], ...] = (
    *((Every(), parts) for parts in PARTS),
    (AsScored(), ("held",)),
)
WORDS: dict[Part, str] = {"fit": "rows not held out", "held": "rows held out"}


@dataclass(frozen=True)
class StateEvidence:
    """A state and the rows that it summarizes: all rows, a part, or a sample."""

    state: State
    basis: str = "all rows"
    part: Part = "all"


def evidence(bundle: Fitted, statistic: Statistic[Any], key: str) -> StateEvidence | None:
    """Return the state of a statistic over all rows of a site, or the best substitute.

    In this order: the stored state; moments computed from the moments of classes; the state of the
    stored sample of rows. None if the bundle holds none of them.
    """
    held = stored(bundle, statistic, key)
    if held is None and isinstance(statistic, HashSample):
        return _sampled(bundle, statistic, key)
    if held is None and statistic == Moments():
        held = _from_classes(bundle, key)
    return _from_sample(bundle, statistic, key) if held is None else held


def stored(bundle: Fitted, statistic: Statistic[Any], key: str) -> StateEvidence | None:
    """Return the stored state of a statistic over all rows of a site, else over a stored part."""
    for where, parts in READINGS:
        ids = [Request(statistic, (key,), where, part).id for part in parts]
        if all(bundle.states.get(i) is not None for i in ids):
            merged: State | None = None
            for i in ids:
                merged = merge_pair(statistic, merged, bundle.states[i])
            assert merged is not None  # every one of them is there
            part = parts[0] if len(parts) == 1 else "all"
            merged = merged if where.finite else _finite(merged)
            return StateEvidence(merged, WORDS.get(part, "all rows"), part)
    return None


def _finite(held: State) -> State:
    """Return a sample of held-out rows without its non-finite rows."""
    assert isinstance(held, HashSampleState)  # nothing else is read as it is scored
    keep = torch.nonzero(finite_rows(held.rows).cpu()).flatten()
    columns = (held.draw[keep], held.group[keep], held.group_draw[keep])
    return HashSampleState(held.n - len(held.draw) + len(keep), held.rows[keep], *columns)


def sample(bundle: Fitted, key: str, m: int = HashSample().m) -> StateEvidence | None:
    """Return the largest sample of rows, or of one row per group, at a site, to find pairs.

    The sample is cut to the ``m`` rows with the smallest sampling keys.
    """
    largest = _largest(bundle, key, HashSample(m))
    return _largest(bundle, key, HashSample(m, groups="one")) if largest is None else largest


def _sampled(bundle: Fitted, wanted: HashSample, key: str) -> StateEvidence | None:
    """Return the requested sample, or a sample of one row per group if only that is stored."""
    if wanted.column != "x":
        return None
    largest = _largest(bundle, key, wanted)
    if largest is not None or wanted.groups:
        return largest
    each = _largest(bundle, key, replace(wanted, groups="one"))
    if each is None or not groups_of(bundle, _state_of(each).n, each.part):
        return None
    return each


def _state_of(sample: StateEvidence) -> HashSampleState:
    assert isinstance(sample.state, HashSampleState)  # as ``_largest`` returns it
    return sample.state


def _largest(bundle: Fitted, key: str, wanted: HashSample) -> StateEvidence | None:
    """Return the largest stored sample that contains the requested sample."""
    kinds = {
        request.statistic: None
        for request in bundle.requests.values()
        if isinstance(request.statistic, HashSample)
        and (request.statistic.column, request.keys) == ("x", (key,))
        and request.where in (Every(), AsScored())
    }
    samples = [cut for kind in kinds if (cut := _cut(bundle, kind, key, wanted)) is not None]
    return max(samples, key=lambda e: len(_state_of(e).draw), default=None)


def _cut(bundle: Fitted, kind: HashSample, key: str, wanted: HashSample) -> StateEvidence | None:
    """Return the requested sample cut from a stored one, or None if the cut would be biased."""
    held = stored(bundle, kind, key)
    if held is None or not isinstance(held.state, HashSampleState):
        return None
    state = held.state
    if not (kind.groups in (wanted.groups, True) or _is_alike(bundle, state, kind, held.part)):
        return None
    kept = state.whole_groups() if kind.groups is True else slice(None)
    columns = (state.rows[kept], state.draw[kept], state.group[kept], state.group_draw[kept])
    return replace(held, state=replace(wanted.observe(*columns), n=state.n))


def _is_alike(bundle: Fitted, state: HashSampleState, kind: HashSample, part: Part) -> bool:
    """Return whether a sample by rows and a sample by groups would hold the same rows."""
    each = not groups_of(bundle, state.n, part)
    if kind.groups == "one":  # equal examples are one group
        n_examples, n_groups = counts_in(bundle.header, part)
        each = each and n_groups == n_examples
    return each or state.is_everything


def groups_of(bundle: Fitted, rows: int, part: Part = "all") -> int:
    """Return the number of groups that a part's rows come from; 0 if each row is independent."""
    n_examples, n_groups = counts_in(bundle.header, part)
    if bundle.header["data"].get("grouped"):
        return n_groups
    return n_examples if rows > n_examples else 0


def _from_classes(bundle: Fitted, key: str) -> StateEvidence | None:
    """Return the moments of all rows, computed from the moments of their classes."""
    for request in bundle.requests.values():
        kind = request.statistic
        full = isinstance(kind, ClassMoments) and kind.scatter in ("pooled", "full")
        if full and (request.keys, request.where) == ((key,), Every()):
            held = stored(bundle, kind, key)
            if held is not None and isinstance(held.state, ClassMomentsState):
                return replace(held, state=held.state.total)
    return None


def _from_sample(bundle: Fitted, statistic: Statistic[Any], key: str) -> StateEvidence | None:
    """Return a statistic's state of the sampled rows, or None if it needs more rows."""
    held = _largest(bundle, key, HashSample())
    if held is None or not {"x"} >= set(statistic.needs()):
        return None
    state = _state_of(held)
    if len(state.draw) == 0 or (statistic == Moments() and state.rows.shape[1] > WIDEST_FULL):
        return None
    with torch.no_grad():
        observed = statistic.observe(state.rows)
    return StateEvidence(observed, f"{held.basis}, {len(state.draw):,} sampled", held.part)


def moments(bundle: Fitted, key: str) -> MomentsState | None:
    """Return mean and full scatter of a site, else mean and diagonal scatter, else None."""
    for kind in (Moments(), Moments("diag")):
        held = evidence(bundle, kind, key)
        if held is not None and isinstance(held.state, MomentsState):
            return held.state
    return None
