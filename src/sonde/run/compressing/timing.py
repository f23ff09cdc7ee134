"""Compare the speed of two models by runs that take turns on the same input."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from sonde.core.inputs import Inputs, Model
from sonde.tap import place_of

RUNS = 20


@dataclass(frozen=True)
class Speed:
    """Seconds of two models on one input, from runs that took turns.

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
        Median of before over median of after: above 1 the changed model is faster.
    runs, threads : int
    """

    what: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    first: tuple[float, float]
    ratio: float
    runs: int
    threads: int

    def json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def speeds(model: Model, changed: nn.Module, inputs: Inputs, runs: int = RUNS) -> list[Speed]:
    """Return how fast both models answer an example and, for language models, a single token.

    Parameters
    ----------
    model : Model
    changed : nn.Module
    inputs : Inputs
        Its first example is taken.
    runs : int, default=20
        Of each model.
    """
    batch = next(iter(inputs.batches(0, 1)))
    ids = batch.kwargs.get("input_ids")
    words = "one example" if ids is None else f"{ids.shape[1]} tokens"
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
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(runs + 1):
            for module, into in zip(modules, seconds, strict=True):
                start = time.perf_counter()
                module(*args, **kwargs)
                _wait(module)
                into.append(time.perf_counter() - start)
    shares = torch.tensor([0.5, 0.025, 0.975], dtype=torch.float64)
    spread = [torch.tensor(s[1:], dtype=torch.float64).quantile(shares).tolist() for s in seconds]
    before, after = ((one[0], one[1], one[2]) for one in spread)
    first = (seconds[0][0], seconds[1][0])
    return Speed(what, before, after, first, before[0] / after[0], runs, torch.get_num_threads())


def _wait(module: nn.Module) -> None:
    """Wait until a GPU has done what it was asked."""
    if next(module.parameters()).device.type == "cuda":
        torch.cuda.synchronize()
