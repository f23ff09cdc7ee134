"""``sonde edit judge``: eight figures of a changed language model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli._presenting import check_page
from sonde.cli.edits._acting import show_change
from sonde.cli.edits.rewrite_fact import read_facts
from sonde.cli.options import DataReading, DeviceWord, ModelWord, Printing, named


@dataclass(frozen=True)
class JudgeEdit:
    """Judge a changed language model by eight figures, whatever changed it.

    The figures are efficacy, generality and specificity of what was asked for, other topics, loss
    on text, fluency and plausibility of what the model now writes, and refusals. The verdict is
    that of the worst figure; the exit code is 1 if it is poor. What was asked for is a file of
    facts as in rewrite-fact, or --positive and --negative.

    Differs: changes nothing; the other words print the same table of their own edit.

    Example: sonde edit judge sonde:stdlib NEW --data sonde:code --limit 8
    """

    model: ModelWord
    changed: Annotated[
        tyro.conf.Positional[str], named("NEW", "the changed model, as MODEL is given")
    ]
    data: Annotated[
        str | None, named("DATA", "plain text that the model should handle as before")
    ] = None
    facts: Annotated[
        Path | None,
        named("FILE", "new answers: .jsonl with prompt, subject and target on each line"),
    ] = None
    positive: Annotated[str | None, named("DATA", "texts that the change should make likelier")] = (
        None
    )
    negative: Annotated[
        str | None, named("DATA", "texts that the change should make less likely")
    ] = None
    limit: Annotated[int | None, named("N", "read only the first N examples of each data set")] = (
        None
    )
    report: Annotated[Path | None, named("FILE", "page to write, .html or .json")] = None
    device: DeviceWord = "auto"
    reading: DataReading = field(default_factory=DataReading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Open both models, measure and report."""
        from sonde.run.changing.judge_edit import judge_edit

        if self.report is not None:
            check_page(self.report, flag="--report")
        change = judge_edit(
            self.model,
            self.changed,
            data=self.data,
            facts=[] if self.facts is None else read_facts(self.facts),
            positive=self.positive,
            negative=self.negative,
            limit=self.limit,
            device=self.device,
            progress=not self.printing.quiet,
            **self.reading.data_options(),
        )
        show_change(change, self.report, self.printing)
        return int(change.document["language"]["is_poor"])
