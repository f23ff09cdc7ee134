"""``sonde.erase``: remove a concept that can be read off the states of a layer."""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from sonde.core.edit import Edit
from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Model
from sonde.data import contrast
from sonde.edit import probes_along
from sonde.edit._eraser import Erase as Erasure
from sonde.run.changing.acting import (
    JUDGED,
    Change,
    Deed,
    carry_out,
    fit_on,
    open_subject,
    require_foldable,
    side,
)
from sonde.run.changing.acts import edit_act, edit_controls
from sonde.run.changing.edit_table import EditTable
from sonde.run.changing.language_figures import Efficacy
from sonde.run.instruments.catalogue import find
from sonde.run.reading.notes import data_name
from sonde.run.reading.read import read
from sonde.tap import editing
from sonde.weights import fold_edit
from sonde.weights._kinds import is_linear

Way = Literal["leace", "sal", "inlp"]


@dataclass(frozen=True)
class Concept:
    """Concept to erase: the classes of data, or the difference between two data sets."""

    data: Any = None
    positive: Any = None
    negative: Any = None

    def check(self) -> None:
        """Raise if a concept is named twice, only in part, or not at all."""
        sides = [self.positive is not None, self.negative is not None]
        if (self.data is not None) == any(sides) or (any(sides) and not all(sides)):
            raise InputError(
                "sonde edit erase: expected DATA with classes, or --positive and --negative. "
                "Give exactly one of these."
            )

    @property
    def neutral(self) -> Any:
        """The default data that the change should leave alone."""
        return self.data if self.negative is None else self.negative

    def rows(self, split: str, limit: int | None) -> tuple[Any, dict[str, Any]]:
        """Return the labelled data of the concept, and the options to open them with."""
        if self.data is None:
            return contrast(self.positive, self.negative, split=split, limit=limit), {}
        return self.data, {"split": split, "limit": limit}

    def sides(self) -> dict[str, tuple[Any, int]]:
        """Return each side's data, with whether the change should make its answers likelier."""
        if self.data is None:
            return {"positive": (self.positive, -1), "negative": (self.negative, 1)}
        return {"data": (self.data, -1)}

    @property
    def told(self) -> str:
        """The target of the change in words."""
        if self.data is None:
            return f"{data_name(self.positive)} less likely than {data_name(self.negative)}"
        return f"answers to {data_name(self.data)} less likely"


def erase(
    model: Any,
    output: str | Path,
    *,
    site: str = "",
    data: Any = None,
    positive: Any = None,
    negative: Any = None,
    method: Way = "leace",
    strength: float = 1.0,
    reducer: str = "positions",
    limit: int | None = None,
    neutral: Any = None,
    force: bool = False,
    show_inputs: bool = False,
    device: str = "auto",
    progress: bool = True,
    **reading: Any,
) -> Change:
    """Write a model in which no linear probe of a layer's states separates classes.

    The change is fitted on the split train and written into the weights of the linear layer that
    ``site`` names. The document says what a linear and a two-layer probe find on the split test,
    there and at every later block. The same as ``sonde edit erase``.

    Parameters
    ----------
    model : str, path, Model or module
        Where the weights of the changed model come from, as in ``sonde.load``.
    output : path
        Folder for the new model; ``sonde.undo`` takes the change back.
    site : str
        A linear layer, for what it gives; with ``:in`` for what it reads. Without it, the error
        lists the linear layers of the model.
    data : data, optional
        Data with labels: the classes to erase.
    positive, negative : data, optional
        In place of ``data``: the two sides.
    method : {"leace", "sal", "inlp"}
        Least change, spectral, or iterative erasure.
    strength : float, default=1.0
        1 erases, 0.5 halves.
    reducer : str, default="positions"
        How an input becomes rows.
    limit : int, optional
        Read only the first examples of each side.
    neutral : data, optional
        Data that should be left alone; by default ``negative``, or ``data``.
    force : bool, default=False
        Write the model even where the change is too large, or does no more than chance.
    show_inputs : bool, default=False
        Put texts before and after into the document.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **reading
        Options of ``sonde.read`` about data, such as ``label_column``.

    Raises
    ------
    InputError
        If the concept is not named, the site's weights cannot hold the change, or the change is
        too large.
    """
    concept = Concept(data, positive, negative)
    concept.check()
    calm = concept.neutral if neutral is None else neutral
    subject = open_subject(model, output, calm, device=device, limit=limit, reading=reading)
    loaded, options = subject.model, subject.options
    if not site:
        raise InputError(f"sonde edit erase: expected --site. {_choice(loaded)}")
    try:
        require_foldable(loaded, site, _any_erasure)
    except StateError as error:
        raise InputError(f"sonde edit erase: {error} {_choice(loaded)}") from error
    instrument = find(method)()
    rows, how = concept.rows("train", limit)
    fitted = fit_on(
        loaded, instrument, rows, site, reducer=reducer, progress=progress, **reading, **how
    )
    place, eraser = fitted.names[0][1], fitted.result(instrument)
    edit = eraser.edit(strength)
    try:
        plan = fold_edit(loaded, edit, place)
    except StateError as error:
        raise InputError(f"sonde edit erase: {error}") from error
    target = [side(loaded, part, *word, **options) for part, word in concept.sides().items()]

    @cache
    def probes() -> tuple[EditTable, Efficacy]:
        return _probes(loaded, edit, place, concept, {"reducer": reducer, **reading})

    deed = Deed(
        word="erase",
        subject=subject,
        plan=replace(plan, method=f"{method} at {site}, strength {strength:g}"),
        act=edit_act(loaded, edit, [place]),
        controls=edit_controls(loaded, edit, [place]),
        target=target,
        told=concept.told,
        sites=[place],
        places=[place],
        prompts=target[0].inputs,
        tables=lambda: (probes()[0],),
        efficacy=lambda: probes()[1],
        notes=(f"{eraser.rank} of {len(eraser.mean)} directions are erased at {place}.",),
        n_rows=eraser.n,
        n_units=len(eraser.mean),
    )
    return carry_out(deed, force=force, show_inputs=show_inputs, progress=progress)


def _choice(model: Model) -> str:
    """Return a sentence on the linear layers that can hold the change; numbers as stars."""
    named = [n for n, part in model.module.named_modules() if is_linear(part)]
    numbers: dict[str, list[str]] = {}
    for name in named:
        numbers.setdefault(re.sub(r"\b\d+\b", "*", name), []).append(name)
    if not named:
        return "This model has no linear layer whose weights can hold it."
    longest = max(map(len, numbers.values()))
    last = [names for names in numbers.values() if len(names) == longest][-1]
    return f"Name a linear layer, such as {last[longest // 2]}. There are {', '.join(numbers)}."


def _probes(
    model: Model, edit: Edit, site: str, concept: Concept, reading: dict[str, Any]
) -> tuple[EditTable, Efficacy]:
    """Return the accuracy of probes at the site and at all later blocks, and what is erased."""
    data, how = concept.rows("test", JUDGED)
    options = {**reading, **how}
    stream = read(model, data, sites=[site, "blocks"], **options)
    keys = [s.key for s in stream.schema]
    later = keys[next(i for i, key in enumerate(keys) if key.partition("|")[0] == site) :]
    before = probes_along(stream)
    with editing(model, edit, site):
        after = probes_along(read(model, data, sites=[site, "blocks"], **options))
    title = (
        "Accuracy of a probe of the class on held-out rows before and after the edit, at the "
        "edited site and at later sites; always predicting the commonest class reaches "
        f"{before[later[0]].majority:.3g}"
    )
    columns = ("site", "linear before", "linear after", "two-layer before", "two-layer after")
    rows = tuple(
        (k, before[k].linear, after[k].linear, before[k].two_layer, after[k].two_layer)
        for k in later
    )
    chance, linear = before[later[0]].majority, (before[later[0]].linear, after[later[0]].linear)
    above_chance = linear[0] - chance
    erased = (linear[0] - linear[1]) / above_chance if above_chance > 0 else float("nan")
    meaning = "fraction of a linear probe's accuracy above chance that is gone at the site"
    return EditTable(title, columns, rows), Efficacy(min(1.0, erased), meaning)


def _any_erasure(width: int) -> Edit:
    """Return an arbitrary erasure of one direction, to check that the weights can hold it."""
    thin = torch.full((width, 1), width**-0.5)
    return Erasure(torch.ones(width), thin, thin)
