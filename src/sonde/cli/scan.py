"""``sonde scan``, the main command."""

import ast
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from sonde.cli._notes import say_notes
from sonde.cli._presenting import pages_of, say_document
from sonde.cli._table import filled, text_width
from sonde.cli.console import (
    CommandFailed,
    begun,
    is_ascii,
    note,
    say,
    say_json,
    typed,
    use_color,
)
from sonde.cli.options import (
    EstimateFlag,
    PageWord,
    Printing,
    Reading,
    RunFlags,
    SourceDataWord,
    SourceWord,
    listed,
    named,
    say_estimate,
    source_of,
)
from sonde.core.errors import InputError
from sonde.core.wording import gib, plural
from sonde.files.places import to_path
from sonde.report.gate import LEVELS, LIMIT, codes_reaching, parse_gate


@dataclass(frozen=True)
class Scan:
    """Read the hidden states of a model over data and report what is going on inside.

    Example: sonde scan sonde:digits sonde:digits/test -o report.html

    More: sonde scan MODEL DATA --versus OTHER; sonde scan NEW DATA --versus-model BEFORE;
    sonde scan acts, on rows that sonde read wrote; sonde scan --explain SND011;
    sonde scan --diff old.json new.json -o diff.html
    """

    model: SourceWord = ""
    data: SourceDataWord = ""
    versus: Annotated[str | None, named("OTHER", "a second data set to compare with DATA")] = None
    versus_model: Annotated[
        str | None,
        named("BEFORE", "an older model, to report what changed inside and in its answers"),
    ] = None
    output: PageWord = None
    card: Annotated[
        Path | None, named("README.md", "write a section of a model card into this file")
    ] = None
    fail_on: Annotated[
        str | None,
        named("GATE", "exit with 1 on note, warning, error, codes, accuracy<.95, loss>1.2"),
    ] = None
    baseline: Annotated[
        Path | None, named("REPORT", "an older report: only new or worse findings count")
    ] = None
    reference: Annotated[
        Path | None,
        named("FILE", "healthy answers by id, as --rows writes them: what is possible"),
    ] = None
    diff: Annotated[
        tuple[Path, Path] | None, named("OLD NEW", "compare two reports instead of scanning")
    ] = None
    explain: Annotated[str | None, named("CODE", "what a code means")] = None
    ignore: Annotated[
        tuple[str, ...], named("CODE[@SITE],...", "silence CODE or CODE@site pattern")
    ] = ()
    only: Annotated[tuple[str, ...], named("CODE,...", "run only these codes")] = ()
    set: Annotated[
        tuple[str, ...], named("CODE.NAME=X,...", "change thresholds of a check by their names")
    ] = ()
    stochastic: Annotated[bool, tyro.conf.arg(help="the model uses random numbers by design")] = (
        False
    )
    deep: Annotated[
        bool,
        tyro.conf.arg(
            help="also run checks that need gradients or more forward passes, and more measures"
        ),
    ] = False
    measures: Annotated[
        str | None, named("METHODS", "further measures at every site: two_nn,uniformity(t=1)")
    ] = None
    alpha: Annotated[float, tyro.conf.arg(help="false-alarm rate of the comparison with OTHER")] = (
        0.01
    )
    detectors: Annotated[
        str | None, named("METHODS", "detectors that score OTHER: mahalanobis,knn(k=5),msp")
    ] = None
    rows: Annotated[
        Path | None,
        named("FILE", "table of every input, its answer and findings: .csv, .parquet, .jsonl"),
    ] = None
    groups: Annotated[
        Path | None, named("FILE", "file for the weak groups found, for `sonde score --group`")
    ] = None
    show_inputs: Annotated[
        bool, tyro.conf.arg(help="include inputs in the report, also with --json or --hash-ids")
    ] = False
    no_inputs: Annotated[bool, tyro.conf.arg(help="leave the inputs out of the page")] = False
    hash_ids: Annotated[
        bool, tyro.conf.arg(help="hash the ids of rows in the report, and show no inputs")
    ] = False
    estimate: EstimateFlag = False
    reading: Reading = field(default_factory=Reading)
    running: RunFlags = field(default_factory=RunFlags)
    printing: Printing = field(default_factory=Printing)

    def __post_init__(self) -> None:
        for name in ("ignore", "only", "set"):
            object.__setattr__(self, name, listed(getattr(self, name)))

    def run(self) -> int:
        """Scan, explain or compare; print and write."""
        if self.explain is not None:
            from sonde.findings.catalogue import explain

            say(filled(explain(self.explain)))
            return 0
        if self.diff is not None:
            return self._compare(*self.diff)
        if not self.model:
            raise InputError("scan: expected MODEL and DATA. See sonde scan --help.")
        return self._scan()

    def _scan(self) -> int:
        from sonde.findings.words.step import Again
        from sonde.report import load_report, save_report
        from sonde.report.card import save_card
        from sonde.report.scan import run_scan
        from sonde.run.passes.directory import dropped_on_error, remove_run

        if self.no_inputs and self.show_inputs:
            raise InputError("scan: --show-inputs and --no-inputs exclude each other. Give one.")
        started = begun.get(time.time())
        gate = parse_gate(self.fail_on)
        self._check_gate(gate)
        old = None if self.baseline is None else load_report(self.baseline)
        directory = self._check_files()
        self.running.check(directory)
        settings = self._settings(directory, gate)
        model, data = self._source()
        if self.estimate:
            return self._say_estimate(model, data, settings)
        older = self._older()
        again = Again(
            self.model, self.data or None, self.reading.typed(), is_command=True, other=self.versus
        )
        with dropped_on_error(directory):
            scanned, _ = run_scan(
                model,
                data,
                self.versus,
                settings=settings,
                again=again,
                **self.reading.site_options(),
                **self.reading.data_options(),
            )
        report = _written(scanned, self.model, started) | self._changed(scanned, older)
        for page in self._pages:
            save_report(report, page)
        if self.output is not None and report["partial"] is None and directory is not None:
            remove_run(directory)
        if self.card is not None:
            note(f"wrote {save_card(report, self.card)}")
        self._write_lists(scanned)
        if not self.printing.json:  # a page cannot hold the time of its own writing, a terminal can
            report["provenance"]["wall_seconds"] = round(time.time() - started, 2)
        for stream in filter(None, (scanned.stream, scanned.other_stream)):
            say_notes(stream, self.printing.quiet or self.printing.json)
        self._print(report, scanned.measured)
        if report["partial"] is not None:
            note(_stopped(report["partial"], directory))
            raise CommandFailed(130)
        if old is not None and not self.printing.json:
            note(_since(self.baseline, old, report))
        codes = codes_reaching(report, gate, old)
        if gate and not self.printing.json:
            note(_told(self.fail_on, codes, old is not None, _unasked(report, gate)))
        return 1 if codes else 0

    def _say_estimate(self, model: Any, data: Any, settings: Any) -> int:
        """Print what a scan of all data will take."""
        from sonde.report.scan import scan_streams
        from sonde.run.reading.read import read
        from sonde.store import is_store

        if isinstance(model, str) and is_store(to_path(model)):
            stream, other = read(model), None if self.versus is None else read(self.versus)
        else:
            options = self.reading.site_options() | self.reading.data_options()
            stream, other = scan_streams(model, data, self.versus, settings, **options)
        return say_estimate(self.printing, "scan", stream, other=other, settings=settings)

    def _older(self) -> Any:
        """Return the older model after a test on the data, or None if none is named."""
        from sonde.cli._compared import inputs_of
        from sonde.run.reading.load import load

        if self.versus_model is None:
            return None
        older = load(self.versus_model, **self.reading.model_options())
        inputs_of(older, self.data, self.reading)
        return older

    def _changed(self, scanned: Any, older: Any) -> dict[str, Any]:
        """Return the changes against an older model; empty without it or after Ctrl-C."""
        from sonde.cli._compared import compared

        if self.versus_model is None or scanned.partial is not None:
            return {}
        progress = not self.printing.quiet
        names = (self.versus_model, self.model)
        comparison = compared(
            names, self.data, self.reading, self.running, progress=progress, first=older
        )
        return {"versus_model": comparison}

    def _check_files(self) -> Path | None:
        """Raise if a file cannot be written; return the run directory."""
        from sonde.report.card import check_card
        from sonde.run.passes.directory import run_directory
        from sonde.run.scoring.tables import check_suffix
        from sonde.store.outputs import check_file

        sources = [t for t in (self.model, self.data, self.versus, self.versus_model) if t]
        if self.rows is not None:
            check_suffix(self.rows)
            check_file(self.rows, *sources, *filter(None, [self.output]))
        if self.groups is not None:
            check_file(self.groups, *sources, *filter(None, [self.output, self.rows]))
        if self.card is not None:
            check_card(self.card)
        if self.output is None:
            return None
        for page in self._pages:
            if page.suffix not in (".html", ".json"):
                raise InputError(f"scan: expected -o to end in .html or .json, got {page}.")
            check_file(page, *sources, *filter(None, [self.baseline]))
        return run_directory(self.output)

    def _write_lists(self, scanned: Any) -> None:
        """Write the inputs that findings name, and the weak groups, if requested."""
        from sonde.findings.row_table import row_table
        from sonde.findings.weak_file import weak_groups_of
        from sonde.run.scoring.tables import write_table

        if self.rows is not None:
            table = row_table(scanned)
            write_table(table, self.rows)
            note(f"wrote {self.rows}: {plural(table.num_rows, 'row')}")
        if self.groups is not None:
            weak = weak_groups_of(scanned)
            weak.save(self.groups)
            note(f"wrote {self.groups}: {plural(len(weak.groups), 'weak group')}")

    def _check_gate(self, gate: tuple[str, ...]) -> None:
        """Raise for a gate on a check that does not run."""
        from sonde.findings.catalogue import rule_classes

        for code in (word for word in gate if word not in LEVELS and not LIMIT.fullmatch(word)):
            if self.only and code not in {c.upper() for c in self.only}:
                raise InputError(f"--fail-on: {code} is not among the checks of --only. Add it.")
            if self.versus is None and rule_classes()[code].theme == "versus":
                raise InputError(
                    f"--fail-on: {code} compares two data sets. Name the other: --versus OTHER."
                )

    def _source(self) -> tuple[Any, str | None]:
        from sonde.store import is_store

        if self.versus_model is not None and (is_store(to_path(self.model)) or self.model == "-"):
            raise InputError(
                f"--versus-model: expected a model and data, got {self.model}, states that were "
                "read before. Give the model itself."
            )
        if is_store(to_path(self.model)):
            return source_of("scan", self.model, self.data, self.reading)
        if not self.data:
            given, is_file = self.model, to_path(self.model).is_file()
            how = f" For feature arrays or a table alone: sonde scan - {given}." if is_file else ""
            raise InputError(
                f"scan: expected MODEL and DATA, got {given} alone.{how} See sonde scan --help."
            )
        self.reading.check(self.data, *([] if self.versus is None else [self.versus]))
        return source_of("scan", self.model, self.data, self.reading)

    @property
    def _pages(self) -> tuple[Path, ...]:
        return () if self.output is None else pages_of(self.output)

    @property
    def _shows_inputs(self) -> bool:
        """True if the report contains inputs: if requested, or by default in a page."""
        pages = self._pages
        is_page = bool(pages) and all(page.suffix == ".html" for page in pages)
        is_private = self.hash_ids or self.printing.json
        return not self.no_inputs and (self.show_inputs or (is_page and not is_private))

    def _settings(self, directory: Path | None, gate: tuple[str, ...]) -> Any:
        from sonde.findings.settings import ScanSettings

        return ScanSettings(
            unit_size=self.running.unit_size,
            **self.running.worker_options(),
            memory=self.running.memory_bytes(),
            directory=directory,
            fresh=self.running.fresh,
            progress=not self.printing.quiet,
            stochastic=self.stochastic,
            deep=self.deep,
            measures=() if self.measures is None else (self.measures,),
            alpha=self.alpha,
            detectors=self._detectors(),
            only=self.only,
            ignore=self.ignore,
            thresholds=parse_thresholds(self.set),
            show_inputs=self._shows_inputs,
            hash_ids=self.hash_ids,
            reference=self.reference,
            fail_on=gate,
            command=shlex.join(["sonde", *typed.get()]),
        )

    def _detectors(self) -> tuple[Any, ...]:
        if self.detectors is None:
            return ()
        from sonde.run.instruments.words import parse_methods

        if self.versus is None:
            raise InputError("scan: --detectors score OTHER. Name it with --versus OTHER.")
        return tuple(parse_methods(self.detectors))

    def _print(self, report: dict[str, Any], measured: Mapping[tuple[str, str], Any]) -> None:
        from sonde.cli._fitted import measures_text
        from sonde.cli._flags import flag_entries, flag_texts
        from sonde.report import to_text
        from sonde.run.fitting.fitted_rows import fitted_rows

        if self.printing.json:
            say_json(report)
            return
        say(
            to_text(
                report,
                text_width(),
                color=use_color(self.printing.no_color),
                ascii=is_ascii(),
                verbose=self.printing.verbose,
                quiet=self.printing.quiet,
            )
        )
        if measured and not self.printing.quiet:
            rows = [row | {"at": []} for row in fitted_rows(measured)]
            say(f"\n{measures_text(rows)}")
            for text in flag_texts(flag_entries(measured)):
                note(f"note: {text}.")
        if "versus_model" in report and not self.printing.quiet:
            say("")
            say_document(report["versus_model"], self.printing)
        for page in self._pages:
            note(f"wrote {page} ({gib(page.stat().st_size)})")

    def _compare(self, first: Path, second: Path) -> int:
        from sonde.files.durable import atomic_write
        from sonde.report import diff, diff_to_html, diff_to_text, load_report
        from sonde.report.files import sealed_page
        from sonde.store.outputs import check_file

        for page in self._pages:
            check_file(page, first, second)
        old, new = load_report(first), load_report(second)
        difference = diff(old, new)
        for page in self._pages:
            atomic_write(page, sealed_page(diff_to_html(old, new)).encode())
            note(f"wrote {page}")
        if self.printing.json:
            say_json(difference)
        else:
            say(diff_to_text(difference, text_width()))
        return 0


def _written(scanned: Any, model: str, started: float) -> dict[str, Any]:
    """Return the report; after Ctrl-C, one without error bars, which is quick to write."""
    from sonde.findings.document import document

    try:
        return document(scanned, model, started)
    except KeyboardInterrupt:
        note("stopping: writing a report without error bars; Ctrl-C again exits without a report.")
    done = scanned.gathered.outcome.done + (scanned.other.outcome.done if scanned.other else 0)
    quick = replace(scanned.settings, error_bars=False)
    return document(
        replace(scanned, settings=quick, partial=scanned.partial or (done, done)), model, started
    )


def _stopped(partial: dict[str, int], directory: Path | None) -> str:
    """Return the progress of an interrupted scan, and how to resume it."""
    done, total = partial["done"], partial["total"]
    words = (
        f"stopped after {done} of {plural(total, 'unit')}"
        if done < total
        else "stopped after all data were read"
    )
    if directory is None:
        return f"{words}; with -o FILE, the same command would continue from here."
    return f"{words}; run the same command to continue."


def parse_thresholds(texts: tuple[str, ...]) -> dict[str, dict[str, int | float]]:
    """Parse the thresholds of ``--set SND011.warning=0.6``.

    Examples
    --------
    >>> parse_thresholds(("SND011.warning=0.6",))
    {'SND011': {'warning': 0.6}}

    Raises
    ------
    InputError
        If a text has another form.
    """
    thresholds: dict[str, dict[str, int | float]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        code, dot, threshold = name.partition(".")
        try:
            number = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            number = None
        if not equals or not dot or number is None or type(number) not in (int, float):
            raise InputError(f"--set: expected CODE.threshold=number, got {text!r}.")
        thresholds.setdefault(code.upper(), {})[threshold] = number
    return thresholds


def _since(baseline: Path | None, old: dict[str, Any], report: dict[str, Any]) -> str:
    """Return a line on findings that are new, worse or gone since another report."""
    from sonde.report import diff

    entries = diff(old, report)["findings"]
    texts = []
    for state in ("new", "worse", "better", "gone", "unjudged"):
        codes = dict.fromkeys(e["code"] for e in entries if e["state"] == state)
        texts += [f"{state}: {', '.join(codes)}"] if codes else []
    return f"since {baseline}: {'; '.join(texts) or 'no finding is new, worse or gone'}"


def _unasked(report: dict[str, Any], gate: tuple[str, ...]) -> list[str]:
    """Return why checks named by a gate did not apply, as ``CODE: reason``."""
    idle = [c for c in report["checks"] if c["state"] == "not_applicable" and c["code"] in gate]
    return [f"{c['code']}: {c['reason']}" for c in idle]


def _told(asked: str | None, codes: list[str], has_baseline: bool, unasked: list[str]) -> str:
    """Return one line on why a gate was reached or passed."""
    idle = f"; does not apply here: {'; '.join(unasked)}" if unasked else ""
    if codes:
        return f"gate {asked}: failed by {', '.join(codes)}{idle}"
    new = "new or worse since the baseline" if has_baseline else "found"
    return f"gate {asked}: passed, no finding at this level is {new}{idle}"
