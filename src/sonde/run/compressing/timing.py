"""Compare the speed of two models by alternating runs on the same input."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.stats import binom  # pyright: ignore[reportMissingTypeStubs]
from torch import nn

from sonde.core.inputs import Inputs, Model
from sonde.core.wording import plural
from sonde.tap import place_of
from sonde.tap.hooks.holding import in_eval

RUNS, UNBOUNDED = 20, 1e12
LEAST_RUNS, LIMIT_SECONDS = 6, 30.0
"""Pairs of runs that bound the ratio at 95 %, and the time after which no more are run."""


@dataclass(frozen=True)
class Speed:
    """Seconds of two models on one input, from alternating runs.

    Parameters
    ----------
    what : str
        The input, in words.
    before, after : tuple of float
        Median, 2.5 % and 97.5 % quantile of the seconds of a run.
    first : tuple of float
        Seconds of the first run of each model. It is not counted, because quantised layers choose
        their kernel in it.
    ratio : float
        Median over pairs of runs of before over after: above 1 the changed model is faster.
    ratio_range : tuple of float
        Interval of that median at 95 % or more, from the order of the pairs. If it holds 1, the
        models are not told apart.
    clock : {"process", "wall"}
        Time of the processor, which other programs do not slow down, for one thread of a CPU.
    runs, threads : int
    """

    what: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    first: tuple[float, float]
    ratio: float
    ratio_range: tuple[float, float]
    clock: str
    runs: int
    threads: int

    def json(self) -> dict[str, Any]:
        """Return the measurements by name."""
        return asdict(self)


def speeds(model: Model, changed: nn.Module, inputs: Inputs, runs: int = RUNS) -> list[Speed]:
    """Return the time both models need for an example and, for language models, for one token.

    Parameters
    ----------
    model : Model
    changed : nn.Module
    inputs : Inputs
        Its first example is taken.
    runs : int, default=20
        Runs of each model; six, if more would take longer than 30 seconds.
    """
    batch = next(iter(inputs.batches(0, 1)))
    ids = batch.kwargs.get("input_ids")
    words = "one example" if ids is None else plural(ids.shape[1], "token")
    asked: list[tuple[str, tuple[Any, ...], Mapping[str, Any]]] = []
    if model.task == "causal" and ids is not None:
        asked.append(("one token", (), {"input_ids": ids[:1, :1]}))
    asked.append((words, batch.args, batch.kwargs))
    place = place_of(model.module, batch)
    return [
        _raced(what, (model.module, changed), *place.call(args, dict(kwargs)), runs)
        for what, args, kwargs in asked
    ]


def _raced(what: str, modules: Any, args: Any, kwargs: Any, runs: int) -> Speed:
    process: tuple[list[float], list[float]] = ([], [])
    wall: tuple[list[float], list[float]] = ([], [])
    is_alone = torch.get_num_threads() == 1 and next(modules[0].parameters()).device.type == "cpu"
    with torch.no_grad(), in_eval(*modules):
        begun = time.perf_counter()
        for turn in range(runs + 1):
            if turn > LEAST_RUNS and time.perf_counter() - begun > LIMIT_SECONDS:
                break
            for i in (0, 1)[:: 1 - 2 * (turn % 2)]:
                starts = time.process_time(), time.perf_counter()
                modules[i](*args, **kwargs)
                _wait(modules[i])
                wall[i].append(time.perf_counter() - starts[1])
                process[i].append(time.process_time() - starts[0])
    # Some systems count processor time in ticks of 10 or 16 ms: short runs then take none.
    is_alone = is_alone and min(map(min, process)) > 0
    seconds = process if is_alone else wall
    ratio, ratio_range = _median_of_pairs(*(one[1:] for one in seconds))
    shares = torch.tensor([0.5, 0.025, 0.975], dtype=torch.float64)
    spread = [torch.tensor(s[1:], dtype=torch.float64).quantile(shares).tolist() for s in seconds]
    before, after = ((one[0], one[1], one[2]) for one in spread)
    first = (seconds[0][0], seconds[1][0])
    name, n_threads = "process" if is_alone else "wall", torch.get_num_threads()
    n_runs = len(seconds[0]) - 1
    return Speed(what, before, after, first, ratio, ratio_range, name, n_runs, n_threads)


def _median_of_pairs(before: list[float], after: list[float]) -> tuple[float, tuple[float, float]]:
    """Return the median ratio of pairs, and its confidence interval from binomial ranks.

    Fewer than six pairs bound nothing at 95 %.
    """
    each = sorted(a / max(b, 1e-12) for a, b in zip(before, after, strict=True))
    n, rank = len(each), int(binom.ppf(0.025, len(each), 0.5))
    interval = (each[rank - 1], each[n - rank]) if rank else (0.0, UNBOUNDED)
    return statistics.median(each), interval


def _wait(module: nn.Module) -> None:
    """Wait until a GPU has finished its queued work."""
    if next(module.parameters()).device.type == "cuda":
        torch.cuda.synchronize()
