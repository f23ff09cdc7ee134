"""Dependence of a model on names, comments and layout of Python code."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, curves
from sonde.report import Answer
from sonde_studies.parts.figures import error_of, melted
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.rows import rows_with
from sonde_studies.parts.source import STEPS, listing, parses, without_some

QUESTION = "What does the model read in code: names, comments or layout?"
LEAST, SPREADS = 20, 2.4
"""Pieces at least, and standard errors of the largest of three steps: 5 % in all."""
MOVED = ChartAxis("moved", share=True, zero=True)
WORDED = {"moved": "stripped", "random bytes": "random bytes deleted"}


@copies_once(one_of_group=("code",))
def code_strip(
    model: Model,
    code: Any,
    *,
    text_column: str = "text",
    site: str = "auto",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Strip names, comments and layout from Python code in turn, and measure how states move.

    How far is the mean squared distance from the states of the original, in units of that between
    two different pieces. Beside each step stands the same number of bytes deleted at random. The
    last step is the listing of the byte code, which holds what the code does and no more.

    Example: sonde recipe code-strip MODEL FUNCTIONS -o stripped.html

    Parameters
    ----------
    model : Model
        A text model.
    code : str, path or iterable
        Rows with a function or module that Python can parse.
    text_column : str, default="text"
        Column of the code.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". One row of each
        group counts.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the bytes that are deleted.
    """
    rows = rows_with("code_strip", code, [text_column], LEAST, limit)
    texts = [text for row in rows if parses(text := str(row[text_column]))]
    if len(texts) < LEAST:
        raise InputError(
            f"code_strip: expected {LEAST} or more pieces that Python can parse, got {len(texts)} "
            f"of {len(rows)}. Pass whole functions or modules."
        )
    plain, draw = _states(model, texts, site, progress), np.random.default_rng(seed)
    spread = float((plain - plain.mean(0)).square().sum(1).mean()) * 2
    table, moved, by_lot = list[dict[str, Any]](), dict[str, Any](), dict[str, Any]()
    for name, strip in STEPS.items():
        stripped = [strip(text) for text in texts]
        x, at_random = _states(model, stripped, site, progress), None
        by_lot[name] = np.zeros(len(texts))
        moved[name] = (x - plain).square().sum(1).numpy() / spread
        if strip is not listing:
            pairs = zip(texts, stripped, strict=True)
            dealt = [without_some(text, len(text) - len(new), draw) for text, new in pairs]
            y = _states(model, dealt, site, progress)
            by_lot[name] = (y - plain).square().sum(1).numpy() / spread
            at_random = float(by_lot[name].mean())
        own = torch.cdist(x, plain).argmin(1) == torch.arange(len(x))
        row: dict[str, Any] = {"without": name, "bytes": float(np.mean([len(t) for t in stripped]))}
        row |= {"moved": float(moved[name].mean()), "random bytes": at_random}
        table.append(row | {"original is nearest": float(own.double().mean())})
    beyond = {name: moved[name] - by_lot[name] for name in [*moved][:-1]}  # the listing is no step
    steps = {n: x - last for (n, x), last in zip(beyond.items(), [0.0, *beyond.values()])}  # noqa: B905
    most = max(steps, key=lambda name: float(steps[name].mean()))
    step, error, names = float(steps[most].mean()), error_of(steps[most]), [*moved]
    title = "How far states move while code is stripped"
    axis = ChartAxis("without", title="without, step by step")
    points = melted(table, "without", "moved", "what", WORDED)
    return Answer(
        question=QUESTION,
        verdict=f"mostly {most}" if step > SPREADS * error else "none of them",
        level="clear",
        sentence=f"Without {names[0]} the states move by {table[0]['moved']:.0%} of the distance "
        f"between two pieces, without {names[1]} too by {table[1]['moved']:.0%}, without "
        f"{names[2]} too by {table[2]['moved']:.0%}; random deletion of as many bytes moves them "
        f"by {table[2]['random bytes']:.0%}.",
        value=step,
        se=error,
        null=0.0,
        n=len(texts),
        rows=tuple(table),
        drawn=curves(title, points, axis, MOVED, by="what"),
        facts={"pieces": str(len(texts)), "not parsed": str(len(rows) - len(texts))},
        advice=(
            "Steps add up: each is taken beside those before it. A model that reads what code does "
            "moves little until the listing.",
        ),
    )


def _states(model: Model, texts: list[str], site: str, progress: bool) -> Tensor:
    """Return the mean state of each text, over all pieces of a long text."""
    items = [{"text": t or " ", "id": str(i)} for i, t in enumerate(texts)]
    found = gather(read(model, items, sites=site, reducer="mean", check=False), progress)
    return found.pooled(found.last)
