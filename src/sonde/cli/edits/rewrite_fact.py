"""``sonde edit rewrite-fact``: another answer to one prompt, in the weights of one layer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli.edits._acting import Acting, samples, some_inputs
from sonde.cli.options import DataWord, ModelWord, Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.core.inputs import Model

DEPTH = 1 / 3
"""Which of the blocks is changed where no layer is named."""


@dataclass(frozen=True)
class RewriteFact:
    """Write one new answer into the last linear layer of a block.

    TARGET is put right behind PROMPT: begin it with a space where one belongs. DATA is plain text
    of the kind that the model must go on to handle as before: what it costs there is kept least,
    and is reported.

    Differs: changes what the model says of one subject; forget removes what examples taught it.

    Example: sonde edit rewrite-fact sonde:stdlib sonde:code --prompt "def setUp("
    --subject setUp --target this --limit 40 -o NEW
    """

    model: ModelWord
    data: DataWord
    prompt: Annotated[str, named("TEXT", "text that names the subject and breaks off")]
    subject: Annotated[str, named("TEXT", "the subject, as it stands in the prompt")]
    target: Annotated[str, named("TEXT", "what should come next")]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder for the new model")]
    layer: Annotated[
        str, named("LAYER", "a linear layer; auto: the last of the block a third of the way up")
    ] = "auto"
    ridge: Annotated[
        float, tyro.conf.arg(help="added to the second moment, in its mean entries")
    ] = 1e-3
    limit: Annotated[int | None, named("N", "read only the first N examples of DATA")] = None
    text_column: Annotated[str | None, named("NAME", "column of the text")] = None
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda, mps, or map (spread)")] = "auto"
    acting: Acting = field(default_factory=Acting)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Fit, plan, judge, write and report."""
        from sonde.data import load, open_inputs
        from sonde.edit import Fact, RankOneEdit, SecondMoment
        from sonde.run.fitting.fit import fit
        from sonde.run.judging.acts import plan_act, plan_controls
        from sonde.run.judging.edit_document import EditTable, edit_document
        from sonde.run.judging.judge import Side, judge
        from sonde.run.reading.read import read
        from sonde.weights import save_edited
        from sonde.weights.folder import check_output, folder_of

        fact = Fact(self.prompt, self.subject, self.target)
        model = load(self.model, device=self.device)
        check_output(self.output, folder_of(model))
        page, layer = self.acting.page(self.output), self._layer(model)
        options: dict[str, Any] = {"limit": self.limit}
        options |= {} if self.text_column is None else {"text_column": self.text_column}
        stream = read(
            model, self.data, sites=[f"{layer}:in"], reducer="tokens", split="train", **options
        )
        quiet = self.printing.quiet
        fitted = fit(SecondMoment(ridge=self.ridge), stream, progress=not quiet)
        edit = RankOneEdit(fact, layer)
        plan = edit.plan(model, fitted)
        told = open_inputs(model, [p + self.prompt + self.target for p in edit.prefixes])
        neutral = self.acting.neutral or self.data
        act = plan_act(model, plan)
        judgement = judge(
            model,
            act,
            [Side("target", told)],
            some_inputs(model, neutral, **options),
            controls=plan_controls(model, plan),
            sites=[f"{layer}:out"],
            progress=not quiet,
        )
        self.acting.check(judgement)
        saved = save_edited(model, plan, self.output, name=self.model)
        figures = tuple((name.replace("_", " "), value) for name, value in plan.figures.items())
        document = edit_document(
            "rewrite-fact",
            judgement,
            model=self.model,
            method=plan.method,
            places=saved.tensors,
            target=f"{self.prompt!r} goes on with {self.target!r}",
            neutral=neutral,
            output=str(self.output),
            tables=(EditTable("What the search found, over several prefixes", ("", ""), figures),),
            samples=samples(model, act, told) if self.acting.show_inputs else (),
        )
        self.acting.tell(document, page, self.printing)
        return 0

    def _layer(self, model: "Model") -> str:
        """Return the layer that was named, or the last linear one of a block.

        Raises
        ------
        InputError
            If the block has none.
        """
        from sonde.edit import linear_layers
        from sonde.tap import resolve

        if self.layer != "auto":
            return resolve(model.module, self.layer)[0].path
        blocks = [site.path for site in resolve(model.module, "blocks")]
        block = blocks[round(DEPTH * (len(blocks) - 1))]
        found = linear_layers(model.module, block)
        if not found:
            raise InputError(
                f"sonde edit rewrite-fact: expected a linear layer in {block}, got none. Name one "
                "with --layer."
            )
        return found[-1]
