"""Detectors against pytorch-ood, and against a plain transcription of the NAC formula."""

from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.against import against, seconds_note
from benchmarks.child import ChildError
from benchmarks.peers import PEER_OF, UNMEASURED, Ask, in_peer
from benchmarks.protocol import spread_of
from benchmarks.rows import Row, not_measured
from benchmarks.size import Size
from sonde.detect import NAC
from sonde.stats.influence_bins import thresholds

PEER = PEER_OF["ood_runner"]
FLAT = 1.05
NAC_BUDGET = 1 / 20
STANDIN = "an empty stand-in for torchvision"
AGREES = 1e-4
DEFAULT = "default"
PROCESSES = 3
BANKS = ("KNN", "NNGuide")


def detector_rows(size: Size) -> list[Row]:
    """Scores, time and memory of every detector that the peer has too."""
    try:
        ask = in_peer("ood_runner", size.offline)
        cases = ask("cases")
    except UNMEASURED as error:
        return [not_measured("detect", f"detectors against {PEER}", str(error))]
    exact = [name for name in cases if DEFAULT not in name]
    timed = [name for name, has_state in cases.items() if has_state]
    rows = _agreement(exact, ask, size) + _time(timed, ask, size)
    for name in size.pick(timed, timed[:1]):
        rows += _memory(name, ask, size)
    return rows


def _agreement(names: list[str], ask: Ask, size: Size) -> list[Row]:
    n, width, n_fresh = size.pick((5_000, 256, 500), (400, 16, 50))
    found = ask("agreement", names=names, n=n, width=width, n_fresh=n_fresh)
    return [
        row
        for name in names
        for row in (_apart(name, found[name], found["version"]), *_defined(name, found[name]))
    ]


def _apart(name: str, found: dict[str, float], version: str) -> Row:
    what = f"{name}: largest relative difference of scores from {version}"
    note = f"from the formula in float64: ours {found['ours']:.1e}, theirs {found['theirs']:.1e}"
    return Row("detect", what, found["apart"], "", None if "own" in found else AGREES, note=note)


def _defined(name: str, found: dict[str, float]) -> list[Row]:
    """Return how well each keeps its own definition, where the peer has another one."""
    if "own" not in found:
        return []
    what = f"{name}: largest relative difference of either from its own definition"
    note = f"ours {found['ours']:.1e}, theirs {found['own']:.1e}"
    return [Row("detect", what, max(found["ours"], found["own"]), "", AGREES, note=note)]


def _shape(name: str, size: Size, rows: int | None = None) -> dict[str, Any]:
    n, width = size.pick((60_000, 512), (400, 16))
    n_fresh = size.pick(2_000, 50) if name.startswith(BANKS) else n
    return {"name": name, "n": rows or n, "width": width, "n_fresh": n_fresh}


def _time(names: list[str], ask: Ask, size: Size) -> list[Row]:
    shapes = [_shape(name, size) for name in names]
    taken = ask("times", shapes=shapes, rounds=size.rounds)
    return [
        Row(
            "detect",
            f"{s['name']}: fit {s['n']} x {s['width']}, score {s['n_fresh']}, time",
            found["median"],
            "x",
            1.0,
            found["spread"],
            found["rounds"],
            f"{seconds_note(found)}; {STANDIN}",
        )
        for s, found in zip(shapes, taken, strict=True)
    ]


def _memory(name: str, ask: Ask, size: Size) -> list[Row]:
    """Return medians over processes: what one of them needs moves by tens of MiB."""
    n = _shape(name, size)["n"]
    arms: dict[str, dict[str, Any]] = {"many": {}, "few": {"rows": n // 4}, PEER: {"theirs": True}}
    try:
        found = {arm: _in_processes(name, ask, size, **asked) for arm, asked in arms.items()}
    except ChildError as error:
        return [not_measured("detect", f"{name}: memory", str(error))]
    many, few, theirs = ({k: median(v) for k, v in values.items()} for values in found.values())
    adds = f"adds {many['added']:.0f} and {few['added']:.0f} MiB, the peer {theirs['added']:.0f}"
    held = f"{name}: memory beyond the rows, {n} against {n // 4} rows"
    flat, below = (None, None) if "all rows" in name else (FLAT, 1.0)  # the bank is the method
    rounds, least = len(found["few"]["beyond"]), max(theirs["added"], 1.0)
    grows, over = many["beyond"] / few["beyond"], many["added"] / least
    strays = grows * spread_of(found["few"]["beyond"]) / few["beyond"]
    moves = over * spread_of(found[PEER]["added"]) / least
    return [
        Row("detect", held, grows, "x", flat, strays, rounds, adds),
        Row("detect", f"{name}: memory added over the peer's", over, "x", below, moves, rounds),
    ]


def _in_processes(
    name: str, ask: Ask, size: Size, rows: int | None = None, **options: Any
) -> dict[str, list[float]]:
    shape = _shape(name, size, rows)
    found = [ask("memory", steady=True, **shape, **options) for _ in range(size.pick(PROCESSES, 1))]
    return {what: [each[what] for each in found] for what in found[0]}


def nac_rows(size: Size) -> list[Row]:
    """Fit and score of NAC on given states and gradients against one row at a time."""
    n, n_fresh, width = size.pick((20_000, 20_000, 512), (300, 100, 16))
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(n, width, generator=generator) for _ in range(2))
    fresh, fresh_grad = (torch.randn(n_fresh, width, generator=generator) for _ in range(2))
    kept: dict[str, Tensor] = {}

    def ours() -> None:
        scorer = NAC(alpha=1.0).fit(x, grad=grad)
        kept["ours"] = scorer.score(fresh, fresh_grad)

    def theirs() -> None:
        coverage = transcribed_fit(x, grad, 1.0, 50, 0.05)
        kept["theirs"] = transcribed_scores(fresh, fresh_grad, coverage, 1.0, 50)

    found = against(ours, theirs, size.rounds)
    apart = float((kept["ours"].double() - kept["theirs"]).abs().max())
    return [
        Row(
            "nac",
            f"NAC, fit {n} x {width}, score {n_fresh}, against its formula row by row",
            found["median"],
            budget=NAC_BUDGET,
            spread=found["spread"] * found["median"],
            rounds=found["rounds"],
            note=f"{1 / found['median']:.0f} times as fast, {seconds_note(found)}, "
            f"scores differ by {apart:.1e}",
        )
    ]


def transcribed_fit(x: Tensor, grad: Tensor, alpha: float, n_bins: int, fill: float) -> Tensor:
    """Return the coverage of each unit's bins, counted row by row."""
    grid = thresholds(n_bins)
    counts = torch.zeros(x.shape[1], n_bins - 1, dtype=torch.float64)
    for row, slope in zip(x, grad, strict=True):
        state = torch.sigmoid(alpha * row.double() * slope.double())
        counts += is_inside(state, grid)
    return (counts / max(1, round(fill * len(x)))).clamp(max=1.0)


def transcribed_scores(
    x: Tensor, grad: Tensor, coverage: Tensor, alpha: float, n_bins: int
) -> Tensor:
    """Return one minus the mean coverage of each row, row by row."""
    grid = thresholds(n_bins)
    found = []
    for row, slope in zip(x, grad, strict=True):
        state = torch.sigmoid(alpha * row.double() * slope.double())
        found.append(1.0 - coverage[is_inside(state, grid)].mean())
    return torch.stack(found)


def is_inside(state: Tensor, grid: Tensor) -> Tensor:
    """Return, for each unit and interval of the grid, whether the unit's state lies in it."""
    return (state[:, None] >= grid[:-1]) & (state[:, None] < grid[1:])
