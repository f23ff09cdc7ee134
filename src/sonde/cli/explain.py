"""``sonde explain``: why a model gives its answers, and which explanation can be believed."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli._presenting import present
from sonde.cli.console import note
from sonde.cli.options import DataWord, ModelWord, PageWord, Printing, Reading, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.run.explaining.choosing import Choice

MOST, USUAL = 256, 32
PIECES, TOKENS = 8, 128
PAGES = (".html", ".htm", ".json")


@dataclass(frozen=True)
class Explain:
    """Say what the answers of a model depend on, by several methods, each tested in the same run.

    Some inputs of DATA are explained (--limit: 32, or 8 pieces of 128 tokens for a language model),
    spread over classes, right and wrong, at the input or at the one site that --sites names. Beside
    each method stand the tests that can refute it: does the answer fall when what it points at is
    taken away, faster than for random orders, and do its signs hold?

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
            help="a class or token id; predicted by default; for sentence embeddings, a text: how "
            "near an input is to it",
        ),
    ] = "predicted"
    answer: Annotated[
        int | None, named("N", "language models: explain the last N tokens as one answer")
    ] = None
    dictionary: Annotated[
        Path | None,
        named("FILE", "say which features of a dictionary the answers depend on, at its site"),
    ] = None
    wrong: Annotated[
        bool, tyro.conf.arg(help="explain wrong answers alone, or those farthest off")
    ] = False
    rows: Annotated[
        Path | None, named("FILE", "explain the rows of a table: what scan --rows wrote")
    ] = None
    label: Annotated[
        str | None,
        tyro.conf.arg(
            name="class", metavar="NAME", help="explain one class alone", help_behavior_hint=""
        ),
    ] = None
    pair: Annotated[
        str | None, named("TRUTH,ANSWER", "explain inputs of one class that are called another")
    ] = None
    no_inputs: Annotated[
        bool, tyro.conf.arg(help="leave the inputs out of the page: only places and ids")
    ] = False
    reading: Reading = field(default_factory=Reading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Explain, judge, print and write."""
        from sonde.data import open_inputs, similarity_to
        from sonde.data.sentence_encoder import SentenceEncoder
        from sonde.run.explaining.answers import answers_of
        from sonde.run.explaining.explanations import (
            DEFAULTS,
            explain,
            explain_document,
            find_attributor,
            leading,
        )
        from sonde.run.explaining.kept import remove_kept
        from sonde.run.passes.directory import run_directory
        from sonde.run.reading.class_order import in_sorted_order

        self._check()
        methods = DEFAULTS if self.methods is None else self._methods(find_attributor)
        model = self._model()
        if is_embedding := isinstance(model.module, SentenceEncoder):
            model = similarity_to(model, self._text())
        objective = self._objective(is_embedding)
        options = self._data_options(model.task == "causal")
        if options["max_length"] != self.reading.max_length:
            note(f"note: texts are read in pieces of {TOKENS} tokens (--max-length).")
        every = in_sorted_order(model, open_inputs(model, self.data, **options))
        limit = self.reading.limit or (PIECES if model.task == "causal" else USUAL)
        inputs = replace(self._choice.of(model, every, limit, self.reading.seed), batch_size=limit)
        directory = None if self.output is None else run_directory(self.output)
        columns = inputs.typed.get("number_columns") or ()
        baseline = self._mean_row(model, every) if columns and self._site == "input" else None
        batch, judged = explain(
            model,
            inputs,
            methods,
            objective,
            self._site,
            progress=not self.printing.quiet,
            directory=directory,
            baseline=baseline,
        )
        classes = self._classes(model, inputs, judged[0].inputs["label"])
        led = leading(judged) if is_embedding or self.target == "predicted" else None
        own, known = classes if inputs.own_labels else {}, inputs.listing.target
        targets = () if known is None else known[batch.order.numpy()].tolist()
        document = explain_document(
            judged,
            batch,
            model=self.model,
            data=self.data,
            features=columns,
            classes=classes,
            answers=answers_of(model, batch, led, self._site, own, targets, baseline),
            where=[inputs.place(i) for i in batch.order.tolist()],
            baseline=baseline,
        )
        if self.dictionary is not None:
            document["features"] = self._features(model, batch, objective, self.dictionary)
        drawn = self._drawn(model, batch, len(document["examples"]), bool(columns))
        present(document, self.printing, self.output, shown_inputs=drawn)
        remove_kept(directory)
        return 0

    def _model(self) -> Any:
        """Return the model, unpacked so that gradients flow."""
        from sonde.run.reading.for_gradients import load_for_gradients

        model, remarks = load_for_gradients(self.model, **self.reading.model_options())
        for line in remarks:
            note(line)
        return model

    @property
    def _choice(self) -> "Choice":
        from sonde.run.explaining.choosing import Choice

        pair = None if self.pair is None else tuple(self.pair.split(","))
        if pair is not None and len(pair) != 2:
            raise InputError(f"--pair: expected TRUTH,ANSWER, got {self.pair!r}.")
        return Choice(self.wrong, self.rows, self.label, pair)

    @property
    def _site(self) -> str:
        return "input" if self.reading.sites == ("auto",) else self.reading.sites[0]

    def _features(self, model: Any, batch: Any, objective: Any, path: Path) -> list[dict[str, Any]]:
        """Return the features of a dictionary that the answers depend on."""
        from sonde.run.explaining.dictionaries import feature_effects, open_dictionary

        named_site = None if self._site == "input" else self._site
        found, site = open_dictionary(path, model.module, named_site)
        if not site:
            raise InputError(f"--dictionary: {path} names no site of this model. Give --sites.")
        return feature_effects(model, batch, found, objective, site)

    def _classes(self, model: Any, inputs: Any, labels: list[str]) -> dict[str, str]:
        """Return the names of the classes or tokens that are explained."""
        from sonde.data.pieces import texts_of

        if model.task == "causal":
            tokens = [label for label in set(labels) if label.isdigit()]
            return {t: repr(texts_of([int(t)], model.processor)[0]) for t in tokens}
        return {str(i): str(name) for i, name in enumerate(inputs.label_names)}

    def _check(self) -> None:
        from sonde.store.outputs import check_file

        self.reading.check(self.data)
        if len(self.reading.sites) != 1 or self.reading.reducer != "auto" or self.reading.axes:
            raise InputError(
                "explain: expected one site and no --reducer or --axes: whole states are "
                "explained, at the input or at the site that --sites names."
            )
        if self.reading.limit is not None and self.reading.limit > MOST:
            raise InputError(
                f"--limit: expected at most {MOST} inputs to explain, got {self.reading.limit}."
            )
        if self.output is None:
            return
        if self.output.suffix.lower() not in PAGES:
            raise InputError(
                f"-o: expected a name that ends in {', '.join(PAGES)}, got {self.output}."
            )
        check_file(self.output, self.model, self.data)

    def _methods(self, find: Any) -> list[Any]:
        from sonde.run.instruments.words import parse_methods

        return parse_methods(self.methods or "", find)

    def _text(self) -> str:
        """Return the text whose vector those of the inputs are compared with."""
        if self.target == "predicted":
            raise InputError(
                "explain: the answers are vectors of texts, which have no likeliest class. Name a "
                "text: --target TEXT explains how near each input is to it."
            )
        return self.target

    def _objective(self, is_embedding: bool) -> Any:
        from sonde.explain import Objective

        if is_embedding:
            return Objective()

        if self.answer is not None:
            return Objective("answer", length=self.answer)
        if self.target == "predicted":
            return Objective()
        if not self.target.isdigit():
            raise InputError(f"--target: expected a class or token id, got {self.target!r}.")
        return Objective(target=int(self.target))

    def _data_options(self, is_causal: bool) -> dict[str, Any]:
        """Return the options for reading all data, before some inputs are chosen.

        Each method takes some 500 forwards. A language model reads short pieces unless told
        otherwise, because its next token can be asked for anywhere.
        """
        known = self.reading.data_options()
        for name in ("check", "logits", "keep_special", "generate"):
            known.pop(name, None)
        if is_causal and known["max_length"] is None and self.rows is None and not self.answer:
            known["max_length"] = TOKENS
        return {**known, "limit": None, "logits": True}

    def _mean_row(self, model: Any, inputs: Any) -> Any:
        """Return the mean of each column: zero need not be a value that a table can have."""
        from sonde.explain import Baseline
        from sonde.run.explaining.choosing import POOL

        return Baseline.fit(model, inputs.drawn(POOL, self.reading.seed))

    def _drawn(self, model: Any, batch: Any, n: int, is_table: bool) -> list[dict[str, Any]]:
        if self.no_inputs or self._site != "input":
            return []
        from sonde.data.pieces import pieces_of
        from sonde.run.scoring.exhibit import pixels_of

        if is_table:
            rows = next(v for v in (*batch.args, *batch.kwargs.values()) if v.ndim == 2)
            return [{"values": rows[i].tolist()} for i in range(n)]
        if pixels_of(batch) is None:
            return [{"pieces": pieces_of(batch, model.processor, example=i)} for i in range(n)]
        images = next(v for v in (*batch.args, *batch.kwargs.values()) if v.ndim == 4)
        return [{"pixels": images[i].detach().float().cpu()} for i in range(n)]
