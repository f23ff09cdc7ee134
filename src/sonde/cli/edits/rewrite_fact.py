"""``sonde edit rewrite-fact``: new answers to prompts, in the weights of one layer."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli.edits._acting import Acting
from sonde.cli.options import DataWord, DeviceWord, ModelWord, Printing, named
from sonde.core.errors import InputError, reason_of

if TYPE_CHECKING:
    from sonde.edit import Fact

KEYS = ("prompt", "subject", "target")


@dataclass(frozen=True)
class RewriteFact:
    """Write new answers into the last linear layer of a block.

    TARGET is appended directly to PROMPT: begin TARGET with a space if the text needs a space.
    --facts has one object per answer, with the keys prompt, subject and target, and if you have
    them lists of paraphrases and neighbours (prompts about other subjects). DATA is plain text on
    which the model should not change: the cost on it is kept small, and is reported. Eight figures
    say whether the answer is given, to other wordings too, to no other subject, in fluent text.

    Differs: changes the model's answer about a subject; forget removes the effect of examples.

    Example: sonde edit rewrite-fact sonde:stdlib sonde:code --prompt "        self.assertEqual("
    --subject assertEqual --target "None)" --steps 60 --largest 10 --limit 40 -o NEW
    """

    model: ModelWord
    data: DataWord
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder for the new model")]
    prompt: Annotated[
        str | None, named("TEXT", "text that mentions the subject and ends before the answer")
    ] = None
    subject: Annotated[str | None, named("TEXT", "the subject, as written in the prompt")] = None
    target: Annotated[str | None, named("TEXT", "the new answer, which should come next")] = None
    facts: Annotated[
        Path | None,
        named(
            "FILE", "instead of a single fact: .jsonl with prompt, subject and target on each line"
        ),
    ] = None
    layer: Annotated[
        str,
        named(
            "LAYER",
            "a linear layer; auto: of the four that causal tracing ranks first, the one with the "
            "best figures on half of the wordings and neighbours; without neighbours, the last of "
            "the block at a third of the depth",
        ),
    ] = "auto"
    ridge: Annotated[
        float,
        tyro.conf.arg(help="ridge added to the second moment, relative to its mean diagonal entry"),
    ] = 1e-3
    steps: Annotated[int, named("N", "steps of the search for the layer's new output")] = 25
    largest: Annotated[
        float,
        tyro.conf.arg(help="largest change of the layer's output, relative to its norm"),
    ] = 4.0
    limit: Annotated[int | None, named("N", "read only the first N examples of DATA")] = None
    text_column: Annotated[str | None, named("NAME", "column of the text")] = None
    device: DeviceWord = "auto"
    acting: Acting = field(default_factory=Acting)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Fit, plan, evaluate, write and report."""
        from sonde.run.changing.rewrite_fact import rewrite_fact

        facts, page = self._facts(), self.acting.page(self.output)
        reading: dict[str, Any] = (
            {} if self.text_column is None else {"text_column": self.text_column}
        )
        change = rewrite_fact(
            self.model,
            self.data,
            facts,
            self.output,
            layer=self.layer,
            ridge=self.ridge,
            steps=self.steps,
            largest=self.largest,
            limit=self.limit,
            **self.acting.options(),
            device=self.device,
            progress=not self.printing.quiet,
            **reading,
        )
        return self.acting.show(change, page, self.printing)

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
            raise InputError(
                "--facts: expected none of --prompt, --subject and --target with it, since the "
                "file holds all three."
            )
        return read_facts(self.facts)


def read_facts(path: Path) -> "list[Fact]":
    """Return the facts of a JSONL file."""
    from sonde.edit import Fact

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--facts: {path} cannot be read: {reason_of(error)}.") from None
    facts: list[Fact] = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            more = {name: tuple(entry.get(name, ())) for name in ("paraphrases", "neighbours")}
            facts.append(Fact(*(entry[key] for key in KEYS), **more))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"--facts: line {i} of {path} does not describe a fact: {reason_of(error)}. Write "
                'one object on each line: {"prompt": ..., "subject": ..., "target": ...}, with '
                'lists "paraphrases" and "neighbours" if you have them.'
            ) from None
    if not facts:
        raise InputError(f"--facts: {path} is empty. Write one fact on each line.")
    return facts
