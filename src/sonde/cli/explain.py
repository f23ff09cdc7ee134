"""``sonde explain``: why a model gives its answers, and which explanations are reliable."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli._presenting import pages_of, present
from sonde.cli.console import at_once, note
from sonde.cli.options import DataWord, ModelWord, PageWord, Printing, Reading, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.run.explaining.choosing import Choice

PAGES = (".html", ".htm", ".json")


@dataclass(frozen=True)
class Explain:
    """Show what a model's answers depend on, by several methods, each tested in the same run.

    Some inputs of DATA are explained (--limit: 32, or 8 pieces of 128 tokens for a language model),
    sampled from all classes and from correct and wrong answers, at the input or at the one site
    that --sites names. Each method is tested: when the parts that it ranks highest are removed,
    does the answer fall faster than for random orders, and are its signs correct?

    Example: sonde explain sonde:digits sonde:digits/test --wrong -o explain.html

    Methods by word: sonde explain sonde:stdlib sonde:stdlib/test --methods integrated_gradients
    """

    model: ModelWord
    data: DataWord
    output: PageWord = None
    methods: Annotated[
        str | None, named("METHODS", "e.g. integrated_gradients(steps=20),saliency,shapley")
    ] = None
    target: Annotated[
        str,
        tyro.conf.arg(
            metavar="CLASS",
            help="class or token id to explain (default: the predicted one); for sentence "
            "embeddings, a text: explains how near an input is to this text",
        ),
    ] = "predicted"
    answer: Annotated[
        int | None, named("N", "language models: explain the last N tokens as one answer")
    ] = None
    dictionary: Annotated[
        Path | None,
        named("FILE", "report which features of a dictionary the answers depend on, at its site"),
    ] = None
    wrong: Annotated[
        bool, tyro.conf.arg(help="explain only wrong answers, or those with the largest errors")
    ] = False
    rows: Annotated[
        Path | None, named("FILE", "explain the rows of a table: what scan --rows wrote")
    ] = None
    ids: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            name="id",
            metavar="NAME ...",
            help=(
                "explain these inputs: ids, locations or row numbers, as scan and score print them"
            ),
            help_behavior_hint="",
        ),
    ] = ()
    label: Annotated[
        str | None,
        tyro.conf.arg(
            name="class", metavar="NAME", help="explain only this class", help_behavior_hint=""
        ),
    ] = None
    pair: Annotated[
        str | None,
        named("TRUTH,ANSWER", "explain inputs of one class that are classified as another"),
    ] = None
    seconds: Annotated[
        float,
        tyro.conf.arg(
            help="time limit for methods and their tests, cheapest first; the page shows those "
            "that finished and names the others (0: no limit)"
        ),
    ] = 60.0
    no_inputs: Annotated[
        bool, tyro.conf.arg(help="leave the inputs out of the page and show only positions and ids")
    ] = False
    reading: Reading = field(default_factory=Reading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Explain, evaluate, print and write."""
        from sonde.run.explaining.explain_answers import explain_answers
        from sonde.run.explaining.kept import remove_kept
        from sonde.run.passes.directory import run_directory

        self._check()
        directory = None if self.output is None else run_directory(self.output)
        explained = explain_answers(
            self.model,
            self.data,
            methods=self.methods,
            site="input" if self.reading.sites == ("auto",) else self.reading.sites[0],
            target=self.target,
            answer=self.answer,
            choice=self._choice,
            dictionary=self.dictionary,
            limit=self.reading.limit,
            seconds=self.seconds,
            show_inputs=not self.no_inputs,
            seed=self.reading.seed,
            **self.reading.model_options(),
            directory=directory,
            progress=False if self.printing.quiet else at_once,
            **self._data_options(),
        )
        for line in explained.notes:
            note(line)
        shown = explained.shown_inputs
        present(explained.document, self.printing, self.output, shown_inputs=shown)
        remove_kept(directory)
        return 0

    @property
    def _choice(self) -> "Choice":
        from sonde.run.explaining.choosing import Choice

        pair = None if self.pair is None else tuple(self.pair.split(","))
        if pair is not None and len(pair) != 2:
            raise InputError(f"--pair: expected TRUTH,ANSWER, got {self.pair!r}.")
        return Choice(self.wrong, self.rows, self.label, pair, self.ids)

    def _check(self) -> None:
        from sonde.store.outputs import check_file

        self.reading.check(self.data)
        if len(self.reading.sites) != 1 or self.reading.reducer != "auto" or self.reading.axes:
            raise InputError(
                "explain: expected one site and no --reducer or --axes: whole states are "
                "explained, at the input or at the site that --sites names."
            )
        if self.output is None:
            return
        for page in pages_of(self.output):
            if page.suffix.lower() not in PAGES:
                raise InputError(
                    f"-o: expected a name that ends in {', '.join(PAGES)}, got {page}."
                )
            check_file(page, self.model, self.data)

    def _data_options(self) -> dict[str, Any]:
        """Return the options for reading all data, before inputs are selected."""
        options = self.reading.data_options()
        for name in ("check", "logits", "keep_special", "sinks", "generate", "limit", "seed"):
            options.pop(name, None)
        return options
