"""Join fitted bundles of different data: merge their states and their headers."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.clearance import LABELS, joined_labels
from sonde.core.errors import SondeWarning, StateError
from sonde.core.hashing import rank_key
from sonde.core.plan import Split
from sonde.core.wording import plural
from sonde.engine.classes import joined_names
from sonde.engine.passes import merge_states
from sonde.engine.requests import Request, States, Task
from sonde.files.identity import CODE, MODEL_FACTS, describe_difference, same_code
from sonde.run.fitting.group_counts import KEPT_DRAWS, groups_between, joined_counts
from sonde.run.fitting.same_behaviour import BEHAVIOUR, require_alike, same_inputs, warn_of_parts
from sonde.run.fitting.traffic import joined_traffic
from sonde.run.instruments.entries import inner_of, spec_of
from sonde.run.instruments.stages import has_stages
from sonde.run.passes.units import add_counters, join_units
from sonde.run.reading.recipe import common, recipe_in, require_same_recipe
from sonde.stats import HashSample, HashSampleState

Units = list[dict[str, Any]]
MOST_SHARED = 0.5
REMEDY = (
    "Fit on data sets without common examples, or give the examples of different data sets "
    "different ids."
)
LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Bundle:
    """The parts of a ``Fitted`` that are read to join it with another bundle."""

    tasks: tuple[Task, ...]
    requests: dict[str, Request]
    states: States
    header: dict[str, Any]
    split: Split | None
    label_names: tuple[str, ...]


def joined(a: Bundle, b: Bundle) -> tuple[States, dict[str, Any]]:
    """Return states and header as if one fit had read the rows of both; see ``Fitted.merge``."""
    _require_alike(a, b)
    units = _merge_units(a.header["units"], b.header["units"])
    data, draws = joined_counts(a.header, b.header, a.split if a.split == b.split else None)
    _require_other_rows(a, b, int(data["n_groups"]))
    names = joined_names(a.label_names, b.label_names)
    if names is None and any("label" in r.statistic.needs() for r in a.requests.values()):
        raise StateError(
            "Fitted.merge: the bundles number their classes differently, "
            f"{_first(a.label_names)} and {_first(b.label_names)}. Read both data sets into one "
            "store (sonde read, then sonde read --append) and fit on that store."
        )
    header = {
        **{name: value for name, value in a.header.items() if name != "group_draws"},
        **draws,
        **joined_traffic(a.header, b.header),
        **({LABELS: labels} if (labels := joined_labels(a.header, b.header)) else {}),
        "model": _one_model(a.header["model"], b.header["model"]),
        "recipe": common(recipe_in(a.header), recipe_in(b.header)),
        "units": units,
        "counters": add_counters(a.header["counters"], b.header["counters"]),
        "data": _merge_data(a.header["data"], b.header["data"])
        | {**data, "label_names": list(names or ())},
    }
    return merge_states(a.requests, a.states, b.states), header


def _one_model(mine: dict[str, Any], its: dict[str, Any]) -> dict[str, Any]:
    """Join what two headers say about the model; the hash of the code is None if the two differ."""
    joined = its | {k: v for k, v in mine.items() if v is not None}
    return joined if same_code(mine.get(CODE), its.get(CODE)) else joined | {CODE: None}


def _require_alike(a: Bundle, b: Bundle) -> None:
    """Raise if the states of two bundles cannot be merged."""
    if any(has_stages(task) for task in (*a.tasks, *b.tasks)):
        raise StateError(
            "Fitted.merge: an instrument with two passes cannot be merged: its second pass "
            "depends on all rows of the first pass. Fit it on all data in one run."
        )
    if "calibrations" in a.header or "calibrations" in b.header:
        raise StateError(
            "Fitted.merge: the calibration scores of one bundle are not valid for detectors "
            "that are fitted on the data of both. Merge first, then calibrate."
        )
    if a.requests.keys() != b.requests.keys():
        raise StateError(
            "Fitted.merge: the bundles hold different states. Fit both with the same instruments, "
            "parameters and sites."
        )
    if spec_of(a.tasks) != spec_of(b.tasks):
        own, theirs = (_wanted(bundle) for bundle in (a, b))
        raise StateError(
            "Fitted.merge: the bundles hold different methods on the same states, "
            f"{sorted(own - theirs)[:3]} and {sorted(theirs - own)[:3]}. Fit both with the "
            "same methods and parameters."
        )
    _require_alike_parts(a, b)
    own, its = a.header["model"], b.header["model"]
    others = [name for name in ("reading", "sites") if a.header.get(name) != b.header.get(name)]
    apart = describe_difference(its, own, MODEL_FACTS)
    if apart is not None:
        raise StateError(
            "Fitted.merge: expected bundles of the same model, but the second bundle's model is "
            f"another one: {apart}. Fit both on one model."
        )
    if others:
        raise StateError(
            f"Fitted.merge: expected bundles with the same {others[0]}, got two different values."
        )
    mine_known, its_known = a.header.get(BEHAVIOUR), b.header.get(BEHAVIOUR)
    if mine_known is not None and its_known is not None and same_inputs(mine_known, its_known):
        require_alike(mine_known, its_known, own, its, "Fitted.merge")
    else:
        warn_of_parts(own, its, "Fitted.merge")
    require_same_recipe(recipe_in(a.header), recipe_in(b.header), "Fitted.merge")
    seeds = [bundle.header["data"].get("seed") for bundle in (a, b)]
    if seeds[0] != seeds[1]:
        raise StateError(
            f"Fitted.merge: the bundles sample rows by different seeds, {seeds[0]} and {seeds[1]}. "
            "Fit both with the same seed."
        )


def joined_split(a: Split | None, b: Split | None) -> Split | None:
    """Return the joined split of two bundles, without its cut if the two cuts differ.

    Raises
    ------
    StateError
        If the bundles hold out different shares, or by different seeds.
    """
    if a == b:
        return a
    whole = None if a is None else replace(a, cut=None)
    if whole is None or b is None or whole != replace(b, cut=None):
        raise StateError(
            f"Fitted.merge: the bundles hold out different rows ({a} and {b}). "
            "Fit both with the same calibrate and seed."
        )
    return whole


def _require_alike_parts(a: Bundle, b: Bundle) -> None:
    """Raise if a group that is in both bundles is held out in one and fitted in the other."""
    joined_split(a.split, b.split)
    if a.split is None or b.split is None or a.split == b.split:
        return
    if n := groups_between(a.header, b.header, (a.split, b.split)):
        raise StateError(
            f"Fitted.merge: {plural(n, 'group')} of both bundles {'is' if n == 1 else 'are'} "
            "held out in one bundle and fitted in the other: with so few groups, the two "
            "bundles split them differently. Fit both data sets together, or give different "
            "groups different names."
        )


def _require_other_rows(a: Bundle, b: Bundle, n_groups: int) -> None:
    """Raise if most examples of a bundle also occur in the other bundle; warn if a few do.

    Without groups, all examples are compared by their draws; with groups, the sampled rows are.
    """
    headers = [bundle.header["data"] for bundle in (a, b)]
    sizes = [int(data["n_groups"]) for data in headers]
    if not any(data["grouped"] for data in headers) and sum(sizes) > n_groups:
        few = max(sizes) <= KEPT_DRAWS
        shared = RowOverlap(sum(sizes) - n_groups, min(sizes), "examples", is_exact=few)
        shared.judge("Fitted.merge", REMEDY)
        return
    for kind, both in _samples(a, b):
        shared = shared_rows(*(Drawn.of(kind, sample) for sample in both), what="sampled rows")
        if shared is not None:
            shared.judge("Fitted.merge", REMEDY)
            return


@dataclass(frozen=True)
class RowOverlap:
    """Rows that two samples have in common: ``n`` of the ``of`` rows of the smaller one."""

    n: int
    of: int
    what: str
    is_exact: bool = True

    @property
    def is_most(self) -> bool:
        """True if the shared rows are most rows of the smaller sample."""
        return self.n > MOST_SHARED * self.of

    def judge(self, owner: str, remedy: str) -> None:
        """Raise if most rows of one bundle occur in the other; warn if some do.

        Raises
        ------
        StateError
        """
        about = "" if self.is_exact else "about "
        text = (
            f"{owner}: {about}{self.n:,} of {self.of:,} {self.what} of one bundle have the ids of "
            f"rows of the other: they {{}} count twice. {remedy}"
        )
        if self.is_most:
            raise StateError(text.format("would"))
        warnings.warn(text.format("now"), SondeWarning, stacklevel=4)


@dataclass(frozen=True)
class Drawn:
    """Rows of a hash sample, with their sampling and sort keys, and whether rows were dropped."""

    draw: Int[Tensor, "sample"]
    order: Int[Tensor, "sample"]
    is_cut: bool

    @classmethod
    def of(cls, kind: HashSample, sample: HashSampleState) -> "Drawn":
        """Return the rows of a hash sample."""
        is_cut = len(sample.draw) == kind.m and not sample.is_everything
        return cls(sample.draw, sample.group_draw if kind.groups else sample.draw, is_cut)


def shared_rows(*samples: Drawn, what: str) -> RowOverlap | None:
    """Return the number of rows that two samples share, or None if they share none.

    Only rows up to the end of the sample that ends first are compared: up to there both samples
    are complete, so the share of common rows is that of all the data.
    """
    orders = [rank_key(s.order) for s in samples]
    ends = [int(o[-1]) for o, s in zip(orders, samples, strict=True) if s.is_cut]
    end = min(ends, default=LAST)
    here = [set(s.draw[o <= end].tolist()) for s, o in zip(samples, orders, strict=True)]
    n = len(here[0] & here[1])
    return RowOverlap(n, min(map(len, here)), what) if n else None


def _samples(
    a: Bundle, b: Bundle
) -> Iterator[tuple[HashSample, tuple[HashSampleState, HashSampleState]]]:
    for name, request in a.requests.items():
        kind, own, its = request.statistic, a.states.get(name), b.states.get(name)
        if not isinstance(own, HashSampleState) or not isinstance(its, HashSampleState):
            continue
        if isinstance(kind, HashSample):
            yield kind, (own, its)


def _first(names: tuple[str, ...]) -> str:
    """Return the first few classes as text."""
    shown = ", ".join(f"{i} = {name}" for i, name in enumerate(names[:3]))
    return f"({shown}{', ...' if len(names) > 3 else ''})"


def _wanted(bundle: Bundle) -> set[str]:
    """Return each requested method with its parameters and sites, as text."""
    return {f"{inner_of(t.instrument)!r} at {' & '.join(t.keys)}" for t in bundle.tasks}


def _merge_units(a: Units, b: Units) -> Units:
    """Return the union of the units that the bundles have seen, for each plan.

    Raises
    ------
    StateError
        If a unit would be counted twice: the same unit of one plan, or the same data under two
        plans that differ in their cut.
    """
    by_plan = {entry["plan"]: entry for entry in a}
    merged = {plan: dict(entry) for plan, entry in by_plan.items()}
    for entry in b:
        plan = entry["plan"]
        if plan not in merged:
            clash = [e for e in a if e["data"] == entry["data"]]
            if clash:
                raise StateError(
                    "Fitted.merge: both bundles have seen the same data "
                    f"(fingerprint {entry['data'][:12]}) under different plans, units "
                    f"{clash[0]['units']} and {entry['units']}: rows would count twice."
                )
            merged[plan] = dict(entry)
            continue
        merged[plan]["units"] = join_units(merged[plan]["units"], entry["units"])
    return [merged[plan] for plan in sorted(merged)]


def _merge_data(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    both = sorted({a["fingerprint"], b["fingerprint"]})
    return {
        **{name: value for name, value in a.items() if name != "held"},
        "fingerprint": "+".join(both),
        "grouped": bool(a.get("grouped") or b.get("grouped")),
    }
