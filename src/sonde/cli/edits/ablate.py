"""``sonde edit ablate``: one direction out of everything that writes to a model's states."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sonde.cli.edits._acting import Acting, Deed, side
from sonde.cli.edits.steer import Contrasted, NegativeWord, PositiveWord
from sonde.cli.options import ModelWord, Printing, named
from sonde.core.errors import InputError, StateError

if TYPE_CHECKING:
    from sonde.core.inputs import Model
    from sonde.edit import AblationChoice
    from sonde.run.judging.edit_document import EditTable


@dataclass(frozen=True)
class AblateDirection:
    """Remove the direction behind the behaviour that POSITIVE evokes in a model.

    Candidates are fitted at the last token of every block on the split train. On the split test
    each is removed and added. The candidate that removes the behaviour most, can also induce it,
    and leaves the answers to NEGATIVE alone is projected out of all layers that write to the
    states.

    Differs: takes away what the model does; erase takes away what can be read off its states, steer
    makes more or less of it.

    Example: sonde edit ablate sonde:stdlib --positive sonde:upper --negative sonde:lower -o NEW
    """

    model: ModelWord
    positive: PositiveWord
    negative: NegativeWord
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder for the new model")]
    site: Annotated[str, named("SITE", "the candidates' sites; auto: all blocks")] = "auto"
    strength: Annotated[float, tyro.conf.arg(help="1 removes, 0.5 halves")] = 1.0
    kl_limit: Annotated[
        float, tyro.conf.arg(help="nats by which answers to NEGATIVE may differ")
    ] = 0.1
    reading: Contrasted = field(default_factory=lambda: Contrasted(reducer="last"))
    acting: Acting = field(default_factory=Acting)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Fit the candidates, choose, judge, write and report."""
        from sonde.data import contrast, load
        from sonde.edit import DirectionalAblation, choose_ablation
        from sonde.run.judging.acts import edit_act, edit_controls
        from sonde.weights import fold_writers
        from sonde.weights.factory_folder import check_change

        page = self.acting.page(self.output)
        model = load(self.model, device=self.reading.device)
        check_change(model, self.output)
        options = self.reading.data_options() | {"limit": self.reading.limit}
        neutral = self.acting.neutral or self.negative
        self.acting.require_neutral(model, neutral, **options)
        places = self._writers(model)
        sites = "blocks" if self.site == "auto" else self.site
        data = contrast(self.positive, self.negative, limit=self.reading.limit)
        fitted = self.reading.fit(model, DirectionalAblation(), data, sites, self.printing.quiet)
        candidates = {site: fitted.result(method, site) for method, site in fitted.names}
        target = [
            side(model, "positive", self.positive, -1, **options),
            side(model, "negative", self.negative, 1, **options),
        ]
        showing, usual = (one.inputs for one in target)
        choice = choose_ablation(
            model, candidates, showing, usual, sites=places, kl_limit=self.kl_limit
        )
        edit = choice.direction.edit(self.strength)
        deed = Deed(
            word="ablate",
            model=model,
            name=self.model,
            plan=replace(fold_writers(model, edit), method=self._method(choice)),
            output=self.output,
            act=edit_act(model, edit, places),
            controls=edit_controls(model, edit, places),
            target=target,
            told=f"{self.positive} less likely than {self.negative}",
            neutral=neutral,
            options=options,
            sites=[choice.site],
            prompts=showing,
            tables=lambda: (self._trials(choice),),
        )
        return self.acting.carry_out(deed, page, self.printing)

    def _writers(self, model: "Model") -> list[str]:
        """Return the sites of all layers that write to the states.

        Raises
        ------
        InputError
            If the states are no sum of such layers.
        """
        from sonde.weights import residual_writers

        try:
            writers = residual_writers(model)
        except StateError as error:
            raise InputError(
                f"sonde edit ablate: {error} To try it: fit directional_ablation with `sonde fit`, "
                f"then `sonde generate {self.model} PROMPTS --steer FILE.sonde`."
            ) from error
        return [writer if isinstance(writer, str) else writer.name for writer in writers]

    def _method(self, choice: "AblationChoice") -> str:
        return f"directional_ablation at {choice.site}, strength {self.strength:g}"

    def _trials(self, choice: "AblationChoice") -> "EditTable":
        """Return what each candidate did."""
        from sonde.run.judging.edit_document import EditTable

        rows = tuple(
            (t.site, t.bypass, t.induce, t.kl, t.refused or ("taken" * (t.site == choice.site)))
            for t in choice.trials
        )
        columns = ("site", "taken out", "added", "KL", "")
        before, usual = choice.plain
        title = (
            f"Log-odds of the behaviour, {before:.3g} on {self.positive} and {usual:.3g} on "
            f"{self.negative} before: with each candidate taken out of the first, added to the "
            "second, and the divergence of the second's answers when it is taken out"
        )
        return EditTable(title, columns, rows)
