"""Measures against the plain way that builds all distances, and against other libraries."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.against import against, seconds_note
from benchmarks.measure_runner import drawn
from benchmarks.peers import UNMEASURED, in_peer
from benchmarks.rows import Row, not_measured
from benchmarks.size import Size
from sonde.engine.passes import merge_pair, states_of
from sonde.engine.requests import Task, requests
from sonde.measure import (
    ClassSeparability,
    Covariance,
    EffectiveRank,
    ParticipationRatio,
    Spectrum,
)
from sonde.stats import HsicSums

TIME = {"neighbours": 0.15, "ksg": 0.5, "two-nn": 0.9}
ROOM = {"neighbours": 0.08, "two-nn": 0.1}
EXACT, ONE_PASS = 1e-10, 1.2
ONE_PASS_OF = (Covariance(), Spectrum(), EffectiveRank(), ParticipationRatio(), ClassSeparability())


def measure_rows(size: Size) -> list[Row]:
    """Neighbours, dimension, information, exact HSIC, and one pass over many rows."""
    n, dim = size.pick((8_192, 256), (256, 8))
    rows = _pair("neighbours", "", f"mutual_knn, {n} x {dim}, against all distances", n, dim, size)
    n, dim = size.pick((10_000, 256), (200, 8))
    for what, parts in (("two-nn", "value alone"), ("two-nn-whole", "with error, null and halves")):
        name = f"two_nn {parts}, {n} x {dim}, against scikit-dimension"
        rows += _pair(what, "scikit-dimension", name, n, dim, size)
    n, dim = size.pick((20_000, 10), (200, 2))
    what = f"one KSG estimate, {n} x ({dim} + {dim}), against npeet-plus"
    rows += _pair("ksg", "npeet-plus", what, n, dim, size)
    return [*rows, *_hsic(size), *_one_pass(size)]


def _pair(what: str, peer: str, name: str, n: int, dim: int, size: Size) -> list[Row]:
    """Return time, memory and how far the values are apart, of a measure and of a peer."""
    try:
        ask = in_peer("measure_runner", size.offline, peer, what=what, n=n, dim=dim)
        found = ask("times", peer=peer, rounds=size.rounds)
        room = [ask("memory", peer=side)["mib"] for side in ("", peer or "dense")]
    except UNMEASURED as error:
        return [not_measured("measure", name, str(error))]
    speed = f"{seconds_note(found)}, values {found['value']:.6f} and {found['other']:.6f}"
    told = f"{room[0]:.0f} MiB against {room[1]:.0f} MiB beyond the rows"
    ratio = room[0] / max(room[1], 1e-9)
    return [
        Row(
            "measure",
            f"{name}: time",
            found["median"],
            "x",
            TIME.get(what),
            found["spread"],
            note=speed,
        ),
        Row("measure", f"{name}: memory", ratio, "x", ROOM.get(what), note=told),
    ]


def _hsic(size: Size) -> list[Row]:
    """Return how far exact sums are from Gram matrices."""
    n, dim = size.pick((2_000, 64), (64, 4))
    x, y = (z.double() for z in drawn(n, dim))
    ours = float(HsicSums().observe(x, y).hsic)
    theirs = float(_gram_hsic(x, y))
    apart = abs(ours - theirs) / abs(theirs)
    name = f"unbiased HSIC from sums against Gram matrices, {n} x {dim}, relative difference"
    return [Row("measure", name, apart, "", EXACT, note=f"{ours:.9g} and {theirs:.9g}")]


def _gram_hsic(x: Tensor, y: Tensor) -> Tensor:
    k, m = ((z @ z.T).fill_diagonal_(0.0) for z in (x - x.mean(0), y - y.mean(0)))
    n = len(x)
    cross = 2.0 / (n - 2) * (k.sum(0) @ m.sum(0))
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - cross
    return total / (n * (n - 3))


def _one_pass(size: Size) -> list[Row]:
    """Return what five measures of many rows cost in one pass beside the products alone.

    The same batches come again and again: what is measured is arithmetic, not drawing or reading.
    """
    n, dim, batch, again = size.pick((40_960, 768, 4_096, 25), (512, 16, 128, 2))
    batches = drawn(n, dim)[0].split(batch) * again
    label = torch.arange(batch) % 10
    task_of = [Task(m, ("x",)) for m in ONE_PASS_OF]
    wanted = requests(task_of)

    def ours() -> None:
        states: dict[str, Any] = dict.fromkeys(wanted)
        for rows in batches:
            for i, request in wanted.items():
                columns = {"x": rows, "label": label}
                new = request.statistic.observe(*(columns[c] for c in request.statistic.needs()))
                states[i] = merge_pair(request.statistic, states[i], new)
        for task in task_of:
            task.instrument.result(**states_of(task, states))

    def products() -> None:
        total = torch.zeros(dim, dim, dtype=torch.float64)
        for rows in batches:
            wide = rows.double()
            total += wide.T @ wide

    found = against(ours, products, min(size.rounds, 3))
    what = f"covariance, spectrum, ranks and separability of {again * n} x {dim} rows"
    name = f"{what}, against the products alone: time"
    note = seconds_note(found)
    return [Row("measure", name, found["median"], "x", ONE_PASS, found["spread"], note=note)]
