"""``sonde edit erase``: remove a concept that can be read off the states of a layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sonde.cli.edits._acting import JUDGED, Acting, Deed, require_foldable, side
from sonde.cli.edits.steer import Contrasted
from sonde.cli.options import ModelWord, Printing, named
from sonde.core.errors import InputError, StateError

if TYPE_CHECKING:
    from sonde.core.edit import Edit
    from sonde.core.inputs import Model
    from sonde.edit.probes import Probed
    from sonde.run.judging.edit_document import EditTable

ClassesWord = Annotated[
    tyro.conf.Positional[str],
    named("DATA", "data with labels: the classes to erase; none with --positive and --negative"),
]


@dataclass(frozen=True)
class EraseLabel:
    """Change a layer so that no linear probe of its states tells POSITIVE from NEGATIVE.

    Given DATA instead, no probe tells its classes apart: its labels, or those of --label-column.
    The change is fitted on the split train and written into the weights of the linear layer that
    --site names: its output, or with :in its input. The report says what a linear and a two-layer
    probe find on the split test, there and at every later block: the model may compute anew what
    was erased.

    Differs: takes away what can be read off states; ablate takes away what the model does.

    Example: sonde edit erase sonde:stdlib --positive sonde:docstrings --negative sonde:code
    --site layers.3.mlp.down_proj --limit 24 -o NEW
    """

    model: ModelWord
    site: Annotated[str, named("SITE", "a linear layer, for what it gives; :in for what it reads")]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder for the new model")]
    data: ClassesWord = ""
    positive: Annotated[str | None, named("DATA", "data of one side, in place of DATA")] = None
    negative: Annotated[str | None, named("DATA", "data of the other")] = None
    method: Annotated[
        Literal["leace", "sal", "inlp"],
        tyro.conf.arg(help="least change, spectral, or iterative erasure"),
    ] = "leace"
    strength: Annotated[float, tyro.conf.arg(help="1 erases, 0.5 halves")] = 1.0
    reading: Contrasted = field(default_factory=Contrasted)
    acting: Acting = field(default_factory=Acting)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Fit, judge, write and report."""
        from sonde.data import load
        from sonde.run.instruments.catalogue import find
        from sonde.run.judging.acts import edit_act, edit_controls
        from sonde.weights import fold_edit
        from sonde.weights.factory_folder import check_change

        self._check()
        page = self.acting.page(self.output)
        model = load(self.model, device=self.reading.device)
        check_change(model, self.output)
        options = self.reading.data_options() | {"limit": self.reading.limit}
        neutral = self.acting.neutral or self.negative or self.data
        self.acting.require_neutral(model, neutral, **options)
        try:
            require_foldable(model, self.site, _any_erasure)
        except StateError as error:
            raise InputError(f"sonde edit erase: {error}") from error
        instrument = find(self.method)()
        data, how = self._concept("train", self.reading.limit)
        fitted = self.reading.fit(model, instrument, data, self.site, self.printing.quiet, **how)
        site, eraser = fitted.names[0][1], fitted.result(instrument)
        edit = eraser.edit(self.strength)
        try:
            plan = replace(fold_edit(model, edit, site), method=self._method())
        except StateError as error:
            raise InputError(f"sonde edit erase: {error}") from error
        if self.positive and self.negative:
            sides = {"positive": (self.positive, -1), "negative": (self.negative, 1)}
            told = f"{self.positive} less likely than {self.negative}"
        else:
            sides = {"data": (self.data, -1)}
            told = f"answers to {self.data} less likely"
        target = [side(model, name, *word, **options) for name, word in sides.items()]
        deed = Deed(
            word="erase",
            model=model,
            name=self.model,
            plan=plan,
            output=self.output,
            act=edit_act(model, edit, [site]),
            controls=edit_controls(model, edit, [site]),
            target=target,
            told=told,
            neutral=neutral,
            options=options,
            sites=[site],
            places=[site],
            prompts=target[0].inputs,
            tables=lambda: (self._probes(model, edit, site),),
            notes=(f"{eraser.rank} directions of {len(eraser.mean)} are erased at {site}.",),
        )
        return self.acting.carry_out(deed, page, self.printing)

    def _check(self) -> None:
        """Refuse a concept that is named twice, by half, or not at all."""
        sides = [self.positive is not None, self.negative is not None]
        if bool(self.data) == any(sides) or (any(sides) and not all(sides)):
            raise InputError(
                "sonde edit erase: expected DATA with classes, or --positive and --negative. Name "
                "one or the other."
            )
        if self.reading.label_column is not None and not self.data:
            raise InputError("sonde edit erase: --label-column is about DATA. Name them.")

    def _concept(self, split: str, limit: int | None) -> tuple[Any, dict[str, Any]]:
        """Return the data whose labels are erased, and how they are opened."""
        from sonde.data import contrast

        if self.positive and self.negative:
            return contrast(self.positive, self.negative, split=split, limit=limit), {}
        return self.data, {"split": split, "limit": limit}

    def _probes(self, model: "Model", edit: "Edit", site: str) -> "EditTable":
        """Return what probes find at the site and at all later blocks, before and after."""
        from sonde.edit import probes_along
        from sonde.run.judging.edit_document import EditTable
        from sonde.run.reading.read import read
        from sonde.tap import editing

        data, how = self._concept("test", JUDGED)
        options = {"reducer": self.reading.reducer, **self.reading.data_options(), **how}
        stream = read(model, data, sites=[site, "blocks"], **options)
        keys = [s.key for s in stream.schema]
        later = keys[next(i for i, key in enumerate(keys) if key.partition("|")[0] == site) :]
        before = probes_along(stream)
        with editing(model, edit, site):
            after = probes_along(read(model, data, sites=[site, "blocks"], **options))
        title = (
            "Share of held-out rows whose class a probe names, before and after, at the site and "
            f"at later ones; {before[later[0]].majority:.3g} says nothing"
        )
        columns = ("site", "linear before", "after", "two-layer before", "after")
        return EditTable(title, columns, _probed_rows(later, before, after))

    def _method(self) -> str:
        return f"{self.method} at {self.site}, strength {self.strength:g}"


def _probed_rows(
    keys: Sequence[str], before: "dict[str, Probed]", after: "dict[str, Probed]"
) -> tuple[tuple[str | float, ...], ...]:
    return tuple(
        (k, before[k].linear, after[k].linear, before[k].two_layer, after[k].two_layer)
        for k in keys
    )


def _any_erasure(width: int) -> "Edit":
    """Return an erasure of one direction, with the point that stays away from 0."""
    import torch

    from sonde.edit._eraser import Erase as Erasure

    thin = torch.full((width, 1), width**-0.5)
    return Erasure(torch.ones(width), thin, thin)
