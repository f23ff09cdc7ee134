"""Extra cost of a run beyond one forward pass per example, printed before the run starts."""

import sys
from collections.abc import Iterable

from sonde.core.stream import Stream
from sonde.engine.derived import innermost
from sonde.engine.requests import Task
from sonde.run.instruments.stages import has_stages
from sonde.tap import LiveStream

TWICE = "up to 2 passes over the data"
GRADIENT = "a backward pass after every forward pass, for gradients"
DEEP = "one more forward pass of at most 8 texts, padded on the other side (--deep)"
MOVED = "a backward pass and a second forward pass for every forward pass, for perturbed inputs"


def cost_of(stream: Stream, tasks: Iterable[Task] = (), deep: bool = False) -> str:
    """Describe a run's cost beyond one forward pass per example; empty if there is none.

    Parameters
    ----------
    stream : Stream
    tasks : iterable of Task, optional
        What is fitted.
    deep : bool, default=False
        Whether a scan also reads texts that are padded on their other side.

    Examples
    --------
    >>> import torch
    >>> from sonde.measure import Norms, UnitEntropy
    >>> rows = Stream.of(torch.zeros(4, 2))
    >>> cost_of(rows, [Task(UnitEntropy(), ("x",))]), cost_of(rows, [Task(Norms(), ("x",))])
    ('up to 2 passes over the data', '')
    """
    live = innermost(stream)
    asks = isinstance(live, LiveStream)
    reasons = {
        TWICE: any(has_stages(task) for task in tasks),
        GRADIENT: asks and live.objective is not None,
        MOVED: asks and live.perturb is not None,
        DEEP: asks and deep and getattr(live.model.processor, "padding_side", None) is not None,
    }
    return "; ".join(text for text, is_so in reasons.items() if is_so)


def say_cost(
    stream: Stream, tasks: Iterable[Task] = (), shown: bool = True, deep: bool = False
) -> None:
    """Print to stderr a run's cost beyond one forward pass per example."""
    text = cost_of(stream, tasks, deep)
    if shown and text:
        sys.stderr.write(f"note: this run takes {text}.\n")
