"""What it costs to read sites: time against the plain forward, memory, and an early stop."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.child import MIB, added_peak, run_child
from benchmarks.nets import bare_hooks, forward_of, residual_net, token_batch, transformer
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.tap import Tap

TIME_BUDGET, BARE_BUDGET = 1.03, 2.0
ROWS_FACTOR, ROWS_MARGIN = 1.1, 32.0
STOP_MARGIN = 0.03
KEPT_BATCHES = 12


def tap_time(size: Size) -> list[Row]:
    """Time of a forward with all residual sites tapped, pooled rows kept."""
    net, args, kwargs, sites = _net("transformer", size.tiny)
    found = [_ratio("12-layer transformer", net, args, kwargs, sites, size)]
    net, args, kwargs, sites = _net("residual net", size.tiny)
    return [*found, _ratio("18-layer residual net", net, args, kwargs, sites, size), _calls(size)]


def _net(kind: str, tiny: bool) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any], list[str]]:
    """Return a net, what it is called with, and its residual sites."""
    if kind == "transformer":
        depth, width = (3, 64) if tiny else (12, 768)
        net, kwargs = transformer(depth, width), token_batch(4, 16 if tiny else 64)
        return net, (), kwargs, [f"h.{i}" for i in range(depth)]
    x = torch.randn(2 if tiny else 8, 3, 32 if tiny else 112, 32 if tiny else 112)
    return residual_net(16 if tiny else 64), (x,), {}, [str(i) for i in range(4, 12)]


def _tapped(
    net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Sequence[str]
) -> Callable[[], Any]:
    tap = Tap(net, sites, "mean")

    def run() -> Any:
        with tap:
            tap.run(*args, **kwargs)
            return tap.rows

    return run


def _ratio(
    what: str,
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sites: Sequence[str],
    size: Size,
) -> Row:
    plain = forward_of(net, *args, **kwargs)
    arms = {PLAIN: plain, "tap": _tapped(net, args, kwargs, sites), AGAIN: plain}
    ratio = ratio_of(interleaved(arms, size.rounds), "tap")
    return Row(
        "tap",
        f"tap, {what}, {len(sites)} sites",
        ratio.median,
        budget=TIME_BUDGET,
        spread=ratio.spread,
        rounds=ratio.rounds,
        note=ratio.noise,
    )


def _calls(size: Size) -> Row:
    """Return what a tap adds to a forward of some milliseconds, in what bare hooks add."""
    depth, per_round = 6, size.pick(200, 2)
    net, kwargs = transformer(depth, 64), token_batch(1, 64)
    sites = [f"h.{i}" for i in range(depth)]
    forward = forward_of(net, **kwargs)

    def plain() -> None:
        for _ in range(per_round):
            forward()

    def tapped() -> None:
        with Tap(net, sites, "mean") as tap:
            for _ in range(per_round):
                tap.run(**kwargs)
                _ = tap.rows

    def bare() -> None:
        with bare_hooks(net, sites) as kept:
            for _ in range(per_round):
                kept.clear()
                forward()

    arms = {PLAIN: plain, "tap": tapped, "bare": bare, AGAIN: plain}
    taken = interleaved(arms, size.pick(21, 3))
    found, unit = ratio_of(taken, "tap"), ratio_of(taken, "bare").median - 1.0
    millis = 1e3 * sum(taken[PLAIN]) / len(taken[PLAIN]) / per_round
    scale = 1e3 * millis / depth
    return Row(
        "tap",
        f"tap, small net ({depth} x 64), added time over that of bare hooks with the same means",
        (found.median - 1.0) / unit,
        budget=BARE_BUDGET,
        spread=found.spread / abs(unit),
        rounds=found.rounds,
        note=f"{(found.median - 1.0) * scale:.1f} against {unit * scale:.1f} us for each site and "
        f"call, plain forward {millis:.2f} ms, {found.noise}",
    )


def tap_memory(size: Size) -> list[Row]:
    """Peak resident memory of a child that keeps rows, beyond that of plain forwards."""
    rows = []
    for kind in ("transformer", "residual net"):
        target = "benchmarks.tapping:peak_of_forwards"
        plain = run_child(target, kind=kind, tiny=size.tiny, tapped=False)
        tapped = run_child(target, kind=kind, tiny=size.tiny, tapped=True)
        kept = tapped["kept"]
        rows.append(
            Row(
                "tap-memory",
                f"tap, {kind}, peak memory beyond plain",
                tapped["peak"] - plain["peak"],
                unit="MiB",
                budget=ROWS_FACTOR * kept + ROWS_MARGIN,
                note=f"rows kept {kept:.2f} MiB, plain {plain['peak']:.0f} MiB",
            )
        )
    return rows


def peak_of_forwards(kind: str, tiny: bool, tapped: bool) -> dict[str, float]:
    """Return what forwards add to the memory of this process, and the size of rows kept."""
    net, args, kwargs, sites = _net(kind, tiny)
    run = _tapped(net, args, kwargs, sites) if tapped else forward_of(net, *args, **kwargs)
    kept: list[dict[str, torch.Tensor]] = []

    def work() -> None:
        for _ in range(KEPT_BATCHES):
            found = run()
            if tapped:
                kept.append(found)

    peak = added_peak(work)
    n_bytes = sum(x.nbytes for rows in kept for x in rows.values())
    return {"peak": peak, "kept": n_bytes / MIB}


def early_stop(size: Size) -> list[Row]:
    """Time of a forward that ends after site k of n."""
    depth, width = size.pick((12, 768), (4, 64))
    net, kwargs = transformer(depth, width), token_batch(4, size.pick(64, 16))
    plain = forward_of(net, **kwargs)
    arms: dict[str, Callable[[], Any]] = {PLAIN: plain}
    steps = [depth // 4, depth // 2, 3 * depth // 4]
    for k in steps:
        arms[str(k)] = _stopped(net, kwargs, [f"h.{i}" for i in range(k)])
    arms[AGAIN] = plain
    taken = interleaved(arms, size.rounds)
    rows = []
    for k in steps:
        ratio = ratio_of(taken, str(k))
        rows.append(
            Row(
                "stop",
                f"sites up to layer {k} of {depth}",
                ratio.median,
                budget=k / depth + STOP_MARGIN,
                spread=ratio.spread,
                rounds=ratio.rounds,
                note=ratio.noise,
            )
        )
    return rows


def _stopped(net: nn.Module, kwargs: dict[str, Any], sites: Sequence[str]) -> Callable[[], Any]:
    def run() -> Any:
        with Tap(net, sites, "mean", stop=True) as tap:
            tap.run(**kwargs)
            return tap.rows

    return run
