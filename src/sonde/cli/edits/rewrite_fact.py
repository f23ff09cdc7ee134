"""``sonde edit rewrite-fact``: other answers to prompts, in the weights of one layer."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli.edits._acting import Acting, Deed
from sonde.cli.options import DataWord, DeviceWord, ModelWord, Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.core.inputs import Model
    from sonde.edit import BatchEdit, Fact, RankOneEdit

DEPTH = 1 / 3
"""Which of the blocks is changed where no layer is named."""
KEYS = ("prompt", "subject", "target")


@dataclass(frozen=True)
class RewriteFact:
    """Write new answers into the last linear layer of a block.

    TARGET is put right behind PROMPT: begin TARGET with a space if the text needs a space.
    --facts has one object for each answer, with the keys prompt, subject and target. DATA is plain
    text that the model must handle as before: the cost there is kept small, and is reported.

    Differs: changes what the model says of a subject; forget removes what examples taught it.

    Example: sonde edit rewrite-fact sonde:stdlib sonde:code --prompt "        self.assertEqual("
    --subject assertEqual --target "None)" --steps 60 --largest 10 --limit 40 -o NEW
    """

    model: ModelWord
    data: DataWord
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder for the new model")]
    prompt: Annotated[str | None, named("TEXT", "text that names the subject and breaks off")] = (
        None
    )
    subject: Annotated[str | None, named("TEXT", "the subject, as it stands in the prompt")] = None
    target: Annotated[str | None, named("TEXT", "what should come next")] = None
    facts: Annotated[
        Path | None, named("FILE", "instead: .jsonl with prompt, subject and target on each line")
    ] = None
    layer: Annotated[
        str, named("LAYER", "a linear layer; auto: the last of the block a third of the way up")
    ] = "auto"
    ridge: Annotated[
        float, tyro.conf.arg(help="added to the second moment, in its mean entries")
    ] = 1e-3
    steps: Annotated[int, named("N", "steps of the search for what the layer should give")] = 25
    largest: Annotated[
        float,
        tyro.conf.arg(help="longest change that is searched, in lengths of the layer's output"),
    ] = 4.0
    limit: Annotated[int | None, named("N", "read only the first N examples of DATA")] = None
    text_column: Annotated[str | None, named("NAME", "column of the text")] = None
    device: DeviceWord = "auto"
    acting: Acting = field(default_factory=Acting)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Fit, plan, judge, write and report."""
        from sonde.data import load
        from sonde.edit import SecondMoment
        from sonde.edit._fact_answers import FactAnswers
        from sonde.run.fitting.fit import fit
        from sonde.run.judging.acts import plan_act, plan_controls
        from sonde.run.judging.edit_document import EditTable
        from sonde.run.judging.judge import JudgedSide
        from sonde.run.reading.read import read
        from sonde.weights.factory_folder import check_change

        facts, page = self._facts(), self.acting.page(self.output)
        model = load(self.model, device=self.device)
        check_change(model, self.output)
        layer = self._layer(model)
        edit = self._rule(facts, layer)
        answers = FactAnswers(model, facts, edit.prefixes)
        options: dict[str, Any] = {"limit": self.limit}
        options |= {} if self.text_column is None else {"text_column": self.text_column}
        self.acting.require_neutral(model, self.acting.neutral or self.data, **options)
        stream = read(
            model, self.data, sites=[f"{layer}:in"], reducer="tokens", split="train", **options
        )
        fitted = fit(SecondMoment(ridge=self.ridge), stream, progress=not self.printing.quiet)
        plan = edit.plan(model, fitted)
        found = tuple((name.replace("_", " "), value) for name, value in plan.figures.items())
        first, more = facts[0], f", and {len(facts) - 1} more" if len(facts) > 1 else ""
        deed = Deed(
            word="rewrite-fact",
            model=model,
            name=self.model,
            plan=plan,
            output=self.output,
            act=plan_act(model, plan),
            controls=plan_controls(model, plan),
            target=[JudgedSide("target", answers)],
            told=f"{first.prompt!r} goes on with {first.target!r}{more}",
            neutral=self.acting.neutral or self.data,
            options=options,
            sites=[f"{layer}:out"],
            prompts=answers,
            tables=lambda: (
                EditTable("What the search found, over several prefixes", ("", ""), found),
            ),
        )
        return self.acting.carry_out(deed, page, self.printing)

    def _rule(self, facts: "list[Fact]", layer: str) -> "RankOneEdit | BatchEdit":
        from sonde.edit import BatchEdit, RankOneEdit

        search: dict[str, Any] = {"steps": self.steps, "largest": self.largest}
        if len(facts) == 1:
            return RankOneEdit(facts[0], layer, **search)
        return BatchEdit(facts, [layer], **search)

    def _facts(self) -> "list[Fact]":
        """Return the facts that were typed, or those of the file.

        Raises
        ------
        InputError
            If both or neither are given, or a line of the file is no fact.
        """
        from sonde.edit import Fact

        typed = (self.prompt, self.subject, self.target)
        if self.facts is None:
            if self.prompt is None or self.subject is None or self.target is None:
                raise InputError(
                    "sonde edit rewrite-fact: expected --prompt, --subject and --target, or "
                    "--facts FILE.jsonl with these keys on each line."
                )
            return [Fact(self.prompt, self.subject, self.target)]
        if any(word is not None for word in typed):
            raise InputError("--facts: takes the place of --prompt, --subject and --target.")
        return _read_facts(self.facts)

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


def _read_facts(path: Path) -> "list[Fact]":
    """Return the facts of a JSONL file."""
    from sonde.edit import Fact

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--facts: {path} cannot be read: {error}.") from None
    found: list[Fact] = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            made = json.loads(line)
            found.append(Fact(*(made[key] for key in KEYS)))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"--facts: line {i} of {path} is no fact: {error}. Write one object on each line: "
                '{"prompt": ..., "subject": ..., "target": ...}.'
            ) from None
    if not found:
        raise InputError(f"--facts: {path} has no line. Write one fact on each.")
    return found
