"""``sonde.rewrite_fact``: give a model new answers to prompts by editing one layer's weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data.unloaded import require_task
from sonde.edit import BatchEdit, Fact, RankOneEdit, SecondMoment, linear_layers
from sonde.edit._fact_answers import FactAnswers
from sonde.edit._facts import PREFIXES
from sonde.run.changing.acting import (
    Change,
    Deed,
    carry_out,
    open_subject,
)
from sonde.run.changing.acts import plan_act, plan_controls
from sonde.run.changing.edit_table import EditTable
from sonde.run.changing.fact_depths import restored_by_layer
from sonde.run.changing.fact_prompts import FactPrompts, measure_facts
from sonde.run.changing.judge import JudgedSide
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.tap import resolve
from sonde.weights import RewritePlan

DEPTH, TRIED = 1 / 3, 4
"""Depth of the changed block without neighbours, and how many are tried if there are some."""
TRACED = 8
"""Most facts that causal tracing runs."""
LEAST = 2
"""Neighbours without which no layer is chosen by figures."""


def rewrite_fact(
    model: Any,
    data: Any,
    facts: Fact | Sequence[Fact],
    output: str | Path,
    *,
    layer: str = "auto",
    ridge: float = 1e-3,
    steps: int = 25,
    largest: float = 4.0,
    limit: int | None = None,
    neutral: Any = None,
    force: bool = False,
    show_inputs: bool = False,
    device: str = "auto",
    progress: bool = True,
    **reading: Any,
) -> Change:
    """Write a model with new answers in the last linear layer of a block.

    The same as ``sonde edit rewrite-fact``.

    Parameters
    ----------
    model : str, path, Model or module
        A language model; where its weights come from, as in ``sonde.load``.
    data : data
        Plain text that the model must handle as before, as in ``sonde.read``.
    facts : Fact or sequence of Fact
        Prompt, subject and target: ``Fact("The capital of France is", "France", " Rome")``, and
        other wordings and neighbours that judge the change; made from the prompt if not given.
    output : path
        Folder for the new model; ``sonde.undo`` takes the change back.
    layer : str, default="auto"
        A linear layer. ``auto`` is the last of one of the four blocks that causal tracing ranks
        first: the one with the best figures on half of the wordings and neighbours. Without
        neighbours it is that of the block a third of the way up.
    ridge : float, default=1e-3
        Added to the second moment, in its mean entries.
    steps : int, default=25
        Steps of the search for what the layer should give.
    largest : float, default=4.0
        Longest change that is searched, in lengths of the layer's output.
    limit : int, optional
        Read only the first examples of ``data``.
    neutral : data, optional
        Data that should be left alone; by default ``data``.
    force : bool, default=False
        Write the model even where the change is too large, or does no more than chance.
    show_inputs : bool, default=False
        Put texts before and after into the document.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **reading
        Options of ``sonde.read`` about data, such as ``text_column``.

    Raises
    ------
    InputError
        If there is no such layer, or the change is too large.
    """
    asked = [facts] if isinstance(facts, Fact) else [*facts]
    if not asked:
        raise InputError("rewrite_fact: expected at least one fact, got none.")
    require_task(model, ("causal",), "rewrite_fact: expected a causal language model")
    calm = data if neutral is None else neutral
    subject = open_subject(model, output, calm, device=device, limit=limit, reading=reading)
    loaded = subject.model
    prompts = FactPrompts.of(loaded, asked)
    tried = prompts.n_neighbours >= LEAST and layer == "auto"
    places = _layers(loaded, layer, asked, TRIED if tried else 1)
    search: dict[str, Any] = {"steps": steps, "largest": largest}
    how = {"sites": [f"{p}:in" for p in places], "reducer": "tokens", "split": "train"}
    stream = read(loaded, data, **how, **subject.options)
    fitted = fit(SecondMoment(ridge=ridge), stream, progress=progress)
    plans = {
        place: (
            RankOneEdit(asked[0], place, **search)
            if len(asked) == 1
            else BatchEdit(asked, [place], **search)
        ).plan(loaded, fitted)
        for place in places
    }
    place = _best(loaded, plans, prompts.half(0))
    plan, held = plans[place], prompts if len(plans) == 1 else prompts.half(1)
    answers = FactAnswers(loaded, asked, PREFIXES)
    figures = tuple((name.replace("_", " "), value) for name, value in plan.figures.items())
    first, more = asked[0], f", and {len(asked) - 1} more" if len(asked) > 1 else ""
    deed = Deed(
        word="rewrite-fact",
        subject=subject,
        plan=plan,
        act=plan_act(loaded, plan),
        controls=plan_controls(loaded, plan),
        target=[JudgedSide("target", answers)],
        told=f"{first.prompt!r} goes on with {first.target!r}{more}",
        sites=[f"{place}:out"],
        prompts=answers,
        tables=lambda: (
            EditTable("Result of the search, over several prefixes", ("figure", "value"), figures),
        ),
        facts=held,
        notes=_chosen(places, place),
    )
    return carry_out(deed, force=force, show_inputs=show_inputs, progress=progress)


def _best(model: Model, plans: Mapping[str, RewritePlan], prompts: FactPrompts) -> str:
    """Return the layer with the best worst figure on prompts."""

    def merit(place: str) -> tuple[float, float]:
        return measure_facts(model, plan_act(model, plans[place]), prompts).merit

    return next(iter(plans)) if len(plans) == 1 else max(plans, key=merit)


def _chosen(places: Sequence[str], place: str) -> list[str]:
    """Return a sentence on the choice of the layer, if several were tried."""
    if len(places) == 1:
        return []
    return [
        f"{place} was chosen among {', '.join(places)}, which causal tracing ranks first, by the "
        "worst figure on half of the wordings and neighbours; the figures are of the other half."
    ]


def _layers(model: Model, layer: str, facts: Sequence[Fact], n: int) -> list[str]:
    """Return the named layer, or ``n`` last linear layers of blocks.

    Causal tracing ranks them; a single layer is the one at a third of the depth.

    Raises
    ------
    InputError
        If a block has none.
    """
    if layer != "auto":
        return [resolve(model.module, layer)[0].path]
    places: dict[str, None] = {}
    for block in (site.path for site in resolve(model.module, "blocks")):
        in_block = linear_layers(model.module, block)
        if not in_block:
            raise InputError(
                f"sonde edit rewrite-fact: expected a linear layer in {block}, got none. Name one "
                "with --layer."
            )
        places[in_block[-1]] = None
    last = [*places]
    if n == 1 or len(last) <= n:
        return last if len(last) <= n else [last[round(DEPTH * (len(last) - 1))]]
    order = restored_by_layer(model, facts[:TRACED], last).argsort(descending=True).tolist()
    return [last[i] for i in sorted(_apart(order, n, max(1, len(last) // 15)))]


def _apart(order: Sequence[int], n: int, gap: int) -> list[int]:
    """Return the first ``n`` numbers of an order, leaving out those within ``gap`` of another."""
    apart: list[int] = []
    for i in order:
        if all(abs(i - j) > gap for j in apart):
            apart.append(i)
    return apart[:n]
