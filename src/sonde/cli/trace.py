"""``sonde trace``: find the states that make the answers to two texts differ."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.console import note
from sonde.cli.options import (
    DeviceWord,
    DtypeWord,
    ModelWord,
    PageWord,
    Printing,
    TrustFlag,
    listed,
    named,
)
from sonde.core.errors import InputError


@dataclass(frozen=True)
class Trace:
    """Find the states of a language model that make the answers to two texts differ.

    Runs two texts with the same number of tokens that differ in the decisive words. The states of
    one run are put into the other run, one layer and position at a time: the fraction of the
    difference that is restored measures how much of the answer this state determines. The page also
    shows gradient estimates with their errors, and the smallest set of paths through the residual
    stream that restores as much.

    Example: sonde trace sonde:stdlib --clean "for name in names:" --corrupt "for item in names:"
    --answer " print(name" --instead " print(item"

    Many pairs: sonde trace MODEL --pairs pairs.jsonl -o trace.html (clean, corrupt, answer and
    optionally instead on each line)
    """

    model: ModelWord
    clean: Annotated[str | None, named("TEXT", "the text whose answer is known")] = None
    corrupt: Annotated[
        str | None,
        named(
            "TEXT",
            "the text with the decisive words replaced; it must have the same number of tokens",
        ),
    ] = None
    answer: Annotated[
        str | None,
        named(
            "TEXT", "correct continuation of the clean text, including the leading space: ' Mary'"
        ),
    ] = None
    instead: Annotated[
        str | None,
        named(
            "TEXT",
            "correct continuation of the corrupted text; by default only the clean answer counts",
        ),
    ] = None
    pairs: Annotated[
        Path | None,
        named("FILE", "JSONL with the keys clean, corrupt, answer and optionally instead"),
    ] = None
    output: PageWord = None
    sites: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="PATTERN ...", help="sites whose states are exchanged: 'layers.*.mlp'"
        ),
    ] = ("blocks",)
    how: Annotated[
        Literal["denoise", "noise"],
        tyro.conf.arg(
            help="put clean states into the corrupted run, or corrupted states into the clean run"
        ),
    ] = "denoise"
    show_inputs: Annotated[
        bool, tyro.conf.arg(help="show the tokens of --pairs; those of --clean are always shown")
    ] = False
    device: DeviceWord = "auto"
    dtype: DtypeWord = "auto"
    trust_remote_code: TrustFlag = False
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Trace, print and write."""
        from sonde.run.explaining.pairs import TextPair
        from sonde.run.explaining.trace_texts import trace_texts

        self._check()
        typed = TextPair(self.clean or "", self.corrupt or "", self.answer or "", self.instead)
        traced = trace_texts(
            self.model,
            typed if self.pairs is None else self.pairs,
            listed(self.sites),
            how=self.how,
            show_inputs=self.pairs is None or self.show_inputs,
            progress=not self.printing.quiet,
            device=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
        )
        for line in traced.notes:
            note(line)
        present(traced.document, self.printing, self.output)
        return 0

    def _check(self) -> None:
        typed = (self.clean, self.corrupt, self.answer)
        if (self.pairs is None) == all(text is None for text in (*typed, self.instead)):
            raise InputError("trace: expected --clean, --corrupt and --answer, or --pairs FILE.")
        if self.pairs is None and any(text is None for text in typed):
            raise InputError("trace: expected --clean, --corrupt and --answer, all three.")
        check_page(self.output, self.model, self.pairs or "")
