"""``sonde.rewrite_fact``: give a model new answers to prompts by editing one layer's weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data.unloaded import require_task
from sonde.edit import BatchEdit, Fact, RankOneEdit, SecondMoment, linear_layers
from sonde.edit._fact_answers import FactAnswers
from sonde.run.changing.acting import (
    Change,
    Deed,
    carry_out,
    open_subject,
)
from sonde.run.changing.acts import plan_act, plan_controls
from sonde.run.changing.edit_document import EditTable
from sonde.run.changing.judge import JudgedSide
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.tap import resolve

DEPTH = 1 / 3
"""Which of the blocks is changed where no layer is named."""


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
        Prompt, subject and target: ``Fact("The capital of France is", "France", " Rome")``.
    output : path
        Folder for the new model; ``sonde.undo`` takes the change back.
    layer : str, default="auto"
        A linear layer; ``auto`` is the last of the block a third of the way up.
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
    found = subject.model
    place = _layer(found, layer)
    search: dict[str, Any] = {"steps": steps, "largest": largest}
    rule = (
        RankOneEdit(asked[0], place, **search)
        if len(asked) == 1
        else BatchEdit(asked, [place], **search)
    )
    answers = FactAnswers(found, asked, rule.prefixes)
    how = {"sites": [f"{place}:in"], "reducer": "tokens", "split": "train"}
    stream = read(found, data, **how, **subject.options)
    fitted = fit(SecondMoment(ridge=ridge), stream, progress=progress)
    plan = rule.plan(found, fitted)
    figures = tuple((name.replace("_", " "), value) for name, value in plan.figures.items())
    first, more = asked[0], f", and {len(asked) - 1} more" if len(asked) > 1 else ""
    deed = Deed(
        word="rewrite-fact",
        subject=subject,
        plan=plan,
        act=plan_act(found, plan),
        controls=plan_controls(found, plan),
        target=[JudgedSide("target", answers)],
        told=f"{first.prompt!r} goes on with {first.target!r}{more}",
        sites=[f"{place}:out"],
        prompts=answers,
        tables=lambda: (
            EditTable("Result of the search, over several prefixes", ("", ""), figures),
        ),
    )
    return carry_out(deed, force=force, show_inputs=show_inputs, progress=progress)


def _layer(model: Model, layer: str) -> str:
    """Return the named layer, or the last linear layer of a block.

    Raises
    ------
    InputError
        If the block has none.
    """
    if layer != "auto":
        return resolve(model.module, layer)[0].path
    blocks = [site.path for site in resolve(model.module, "blocks")]
    block = blocks[round(DEPTH * (len(blocks) - 1))]
    found = linear_layers(model.module, block)
    if not found:
        raise InputError(
            f"sonde edit rewrite-fact: expected a linear layer in {block}, got none. Name one "
            "with --layer."
        )
    return found[-1]
