"""``sonde edit steer``: move states along the direction between two data sets."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sonde.cli.console import note
from sonde.cli.edits._acting import Acting, Deed, require_foldable, side
from sonde.cli.options import DataReading, DeviceWord, ModelWord, Printing, named
from sonde.core.errors import InputError, StateError

if TYPE_CHECKING:
    from sonde.core.inputs import Model
    from sonde.edit.steering_vector import SteeringDirection
    from sonde.run.bundles.fitted import Fitted

FITTED, CONTROL = ".sonde", ".gguf"
DEPTH = 0.5
"""Depth of the block that is steered by default, as a share of all blocks."""
VECTOR_STRENGTH = 2.0
"""Default strength of a control vector; the command does not judge control vectors."""

PositiveWord = Annotated[str, named("DATA", "data that show the behaviour")]
NegativeWord = Annotated[str, named("DATA", "data that do not")]


@dataclass(frozen=True)
class Contrasted(DataReading):
    """How two data sets are read."""

    reducer: Annotated[
        str,
        tyro.conf.arg(
            help="how an input becomes rows: positions (each token or patch; the whole where there "
            "are none), mean, last, tokens, cls, auto"
        ),
    ] = "positions"
    limit: Annotated[int | None, named("N", "read only the first N examples of each")] = None
    device: DeviceWord = "auto"

    def fit(
        self, model: "Model", instrument: Any, data: Any, sites: Any, quiet: bool, **options: Any
    ) -> "Fitted":
        """Fit an instrument on data; ``options`` are further options of ``sonde.read``."""
        from sonde.run.fitting.fit import fit
        from sonde.run.reading.read import read

        options |= {"sites": sites, "reducer": self.reducer, **self.data_options()}
        return fit(instrument, read(model, data, **options), calibrate=0, progress=not quiet)


@dataclass(frozen=True)
class Steer:
    """Move every state of a block along the direction from NEGATIVE to POSITIVE.

    The direction between the two is fitted on their split train and added as a bias, at the largest
    strength that neither moves states nor costs too much. Its effect is judged on the split test.
    An OUTPUT that ends in .sonde keeps the directions of all blocks for sonde generate; one that
    ends in .gguf holds them as a control vector for llama.cpp.

    Differs: makes a behaviour stronger or weaker; ablate takes away what the model does, erase what
    can be read off its states.

    Example: sonde edit steer sonde:stdlib --positive sonde:docstrings --negative sonde:code -o NEW
    --limit 24
    """

    model: ModelWord
    positive: PositiveWord
    negative: NegativeWord
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], help="folder, or FILE.sonde, or FILE.gguf")
    ]
    site: Annotated[str, named("SITE", "where it is added; auto: the block half way")] = "auto"
    strength: Annotated[
        float | None,
        named("S", "spreads of the states; below 0: less of POSITIVE; auto: all that is allowed"),
    ] = None
    method: Annotated[
        Literal["mean_difference", "pca_difference", "probe"],
        tyro.conf.arg(help="how the direction is found"),
    ] = "mean_difference"
    reading: Contrasted = field(default_factory=Contrasted)
    acting: Acting = field(default_factory=Acting)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Fit, judge, write and report."""
        from sonde.data import contrast, load
        from sonde.edit import SteeringVector
        from sonde.store.outputs import check_file
        from sonde.weights.factory_folder import check_change

        kind, page = self.output.suffix.lower(), None
        if kind in (FITTED, CONTROL):
            check_file(self.output)
        else:
            page = self.acting.page(self.output)
        model = load(self.model, device=self.reading.device)
        if page is not None:
            check_change(model, self.output)
            self._require_foldable(model)
        sites = "blocks" if self.site == "auto" or kind in (FITTED, CONTROL) else self.site
        instrument = SteeringVector(how=self.method)
        data = contrast(self.positive, self.negative, limit=self.reading.limit)
        fitted = self.reading.fit(model, instrument, data, sites, self.printing.quiet)
        if kind == FITTED:
            fitted.save(self.output)
            note(f"wrote {self.output}: the directions of {len(fitted)} sites")
            return 0
        if kind == CONTROL:
            self._write_control_vector(model, fitted)
            return 0
        assert page is not None  # the output is a folder
        name = self._site(fitted)
        return self._fold(model, fitted.result(instrument, name), name, page)

    def _site(self, fitted: "Fitted") -> str:
        """Return the site that was named, or the block half way."""
        names = [site for _, site in fitted.names]
        return names[round(DEPTH * (len(names) - 1))] if self.site == "auto" else names[0]

    def _require_foldable(self, model: "Model") -> None:
        """Refuse data that are not there, and a site whose weights cannot hold the shift."""
        import torch

        from sonde.core.edit import Add
        from sonde.tap.model.sites import resolve

        options = self.reading.data_options() | {"limit": self.reading.limit}
        self.acting.require_neutral(model, self.acting.neutral or self.negative, **options)
        sites = resolve(model.module, "blocks" if self.site == "auto" else self.site)
        site = sites[round(DEPTH * (len(sites) - 1))] if self.site == "auto" else sites[0]
        try:
            require_foldable(model, str(site), lambda n: Add(torch.ones(n)))
        except StateError as error:
            raise self._unfoldable(error) from error

    def _unfoldable(self, error: StateError) -> InputError:
        return InputError(
            f"sonde edit steer: {error} To try it: -o FILE.sonde here, then `sonde generate "
            f"{self.model} PROMPTS --steer FILE.sonde`."
        )

    def _fold(self, model: "Model", steering: "SteeringDirection", site: str, page: Path) -> int:
        from sonde.cli.edits._acting import some_inputs
        from sonde.run.judging.acts import edit_act, edit_controls
        from sonde.run.judging.judge import largest_strength
        from sonde.weights import fold_edit

        options = self.reading.data_options() | {"limit": self.reading.limit}
        neutral = self.acting.neutral or self.negative
        strength = self.strength
        if strength is None:
            strength = largest_strength(
                model,
                lambda strength: edit_act(model, steering.edit(strength), [site]),
                some_inputs(model, neutral, **options),
                [site],
            )
        edit = steering.edit(strength)
        try:
            plan = replace(fold_edit(model, edit, site), method=self._method(strength))
        except StateError as error:
            raise self._unfoldable(error) from error
        more = 1 if strength >= 0 else -1
        target = [
            side(model, "positive", self.positive, more, **options),
            side(model, "negative", self.negative, -more, **options),
        ]
        likelier = [self.positive, self.negative][::more]
        deed = Deed(
            word="steer",
            model=model,
            name=self.model,
            plan=plan,
            output=self.output,
            act=edit_act(model, edit, [site]),
            controls=edit_controls(model, edit, [site]),
            target=target,
            told=f"{likelier[0]} likelier than {likelier[1]}",
            neutral=neutral,
            options=options,
            sites=[site],
            places=[site],
            prompts=target[1].inputs,
            notes=(f"{strength:g} spreads are added behind {site}.",),
        )
        return self.acting.carry_out(deed, page, self.printing)

    def _method(self, strength: float) -> str:
        return f"steering_vector(how={self.method!r}), strength {strength:g}"

    def _write_control_vector(self, model: "Model", fitted: "Fitted") -> None:
        from sonde.files.gguf import write_control_vector

        found = [fitted.result(method, site) for method, site in fitted.names]
        strength = VECTOR_STRENGTH if self.strength is None else self.strength
        vectors = {n: strength * r.spread * r.vector for n, r in enumerate(found)}
        kind = getattr(model.config, "model_type", "") or type(model.module).__name__
        write_control_vector(self.output, kind, vectors)
        note(f"wrote {self.output}: a control vector of {len(vectors) - 1} blocks")
