"""``sonde.scan``, the main function: from a model and data to a report."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Model
from sonde.core.stream import Stream
from sonde.data import check_data
from sonde.files.identity import MODEL_FACTS, difference, first_difference
from sonde.files.places import to_path
from sonde.findings.detectors import with_columns_of
from sonde.findings.document import document
from sonde.findings.scan import Scanned, scan_stream
from sonde.findings.settings import ScanSettings
from sonde.findings.words.step import Again
from sonde.report._picture import Picture
from sonde.report._pictures_answers import (
    confusion_picture,
    labels_picture,
    prediction_picture,
)
from sonde.report._pictures_depth import depth_pictures, measure_pictures
from sonde.report._pictures_sites import similarity_picture, spectrum_picture
from sonde.report._pictures_units import units_picture
from sonde.report._pictures_versus import (
    detectors_picture,
    rows_pictures,
    scores_picture,
    shift_picture,
)
from sonde.report._standalone import Svg, drawn
from sonde.report.files import save_report
from sonde.report.notebook import to_mime
from sonde.report.terminal import to_text
from sonde.run.fitting.header import READING_FIELDS
from sonde.run.reading.class_order import stream_in_sorted_order
from sonde.run.reading.load import load
from sonde.run.reading.notes import data_name, items_of
from sonde.run.reading.read import ARRAYS, AS_IT_IS, read
from sonde.run.reading.recipe import columns_of
from sonde.store import is_store
from sonde.tap import LiveStream

ALL_ROWS = ("tokens", "patches")


class ReportFinding(dict[str, Any]):
    """A finding of a report: a dictionary from its JSON, with common entries as attributes."""

    @property
    def code(self) -> str:
        """Code such as ``SND011``; each code has a page in the documentation."""
        return self["code"]

    @property
    def level(self) -> str:
        """``error``, ``warning`` or ``note``."""
        return self["level"]

    @property
    def title(self) -> str:
        """Short name of the check, equal in every report."""
        return self["title"]

    @property
    def sentence(self) -> str:
        """Summary of this scan, with its numbers, in at most 240 characters."""
        return self["sentence"]

    @property
    def sites(self) -> list[str]:
        """Keys of the sites of the finding."""
        return self["sites"]

    @property
    def rows(self) -> list[str]:
        """Ids of the inputs that the finding names; may be empty."""
        return self["rows"]


class Report:
    """Result of a scan, which can be printed, saved and used as a gate.

    Parameters
    ----------
    report : dict[str, Any]
        Document of a scan, as in its JSON file.

    Attributes
    ----------
    findings : list of ReportFinding
        Sorted by level, then size: dictionaries of the schema ``sonde-scan/1`` with attributes.
    cause : ReportFinding or None
        The finding whose change corrects the wrong answers, if one was found and tried.
    figures : dict of str to Svg
        The pictures of the page by key; a notebook shows them, ``.save(path)`` writes SVG or PNG.
    """

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report

    @property
    def findings(self) -> list[ReportFinding]:
        """The findings that are not ignored."""
        return [ReportFinding(f) for f in self._report["findings"] if not f["ignored"]]

    @property
    def cause(self) -> ReportFinding | None:
        """The finding that is the main cause of wrong answers; None if none was found."""
        return next((f for f in self.findings if f.code == self._report["cause"]), None)

    @property
    def figures(self) -> dict[str, Svg]:
        """The pictures of the page, each drawn on demand."""
        return {picture.key: drawn([picture]) for picture in scan_pictures(self._report)}

    def json(self) -> dict[str, Any]:
        """Return everything, as ``sonde scan --json`` prints it."""
        return self._report

    def save(self, path: str | Path) -> None:
        """Write the report: a self-contained page for ``.html``, the JSON for ``.json``."""
        save_report(self._report, path)

    def __str__(self) -> str:
        return to_text(self._report)

    def __repr__(self) -> str:
        verdict = self._report["verdict"]
        counts = ", ".join(f"{verdict[level]} {level}s" for level in ("error", "warning", "note"))
        return f"Report({counts})"

    def _repr_mimebundle_(
        self, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
    ) -> dict[str, Any]:
        return to_mime(self._report)


def scan(
    model: Any,
    data: Any = None,
    versus: Any = None,
    *,
    settings: ScanSettings | None = None,
    sites: Any = "auto",
    reducer: Any = "auto",
    processor: Any = None,
    keep_special: bool = False,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Report:
    """Read a model's hidden states over data in one pass and report what is going on inside.

    Parameters
    ----------
    model : Model, nn.Module or str
        What ``sonde.load`` gives or takes; ``"-"`` for feature arrays; or the folder of a store,
        then without ``data`` and with a store as ``versus``.
    data : str, path or iterable
        Inputs, as ``sonde.read`` takes them: a path, a data set's name, or an iterable of inputs.
    versus : str, path, iterable or None, default=None
        A second data set: which layers tell the two apart, and which of its rows are unusual.
    settings : ScanSettings, optional
        How the scan is run, thresholds, gates, privacy; from ``sonde.report``.
    sites : object, default="auto"
        Patterns of the sites to scan, such as ``layers.*.mlp``; ``auto`` takes the stream after
        every block.
    reducer : object, default="auto"
        Way in which outputs become rows: mean, last, cls, tokens, patches or flat; ``auto`` chooses
        by the model.
    processor : object, optional
        Tokenizer or image processor of a live module; by default the model's own.
    keep_special : bool, default=False
        Whether special tokens count in the reducers ``tokens`` and ``mean``.
    seed : int, default=0
        Key of the hash by which rows are sampled and split.
    progress : bool, default=True
        False keeps silent, as ``ScanSettings(progress=False)`` does.
    **options
        Named options of ``sonde.data.open_inputs``, and fields of ``ScanSettings`` such as
        ``only``, ``ignore``, ``deep``, ``alpha`` and ``workers``, which replace those of
        ``settings``.

    Returns
    -------
    Report

    Examples
    --------
    >>> scan("sonde:digits", "sonde:digits/test", limit=64, progress=False).json()["schema"]
    'sonde-scan/1'
    """
    started = time.time()
    names = ScanSettings.__dataclass_fields__.keys() & options.keys()
    settings = (settings or ScanSettings()).changed(**{n: options.pop(n) for n in names})
    how = {"sites": sites, "reducer": reducer, "processor": processor}
    how |= {"keep_special": keep_special, "seed": seed, **options}
    chosen = {name: value for name, value in how.items() if value not in AS_IT_IS}
    scanned, name = run_scan(
        model,
        data,
        versus,
        settings=replace(settings, progress=settings.progress and progress),
        sites=sites,
        reducer=reducer,
        processor=processor,
        keep_special=keep_special,
        seed=seed,
        again=Again(_typed(model), _typed(data), chosen, other=_typed(versus)),
        **options,
    )
    return Report(document(scanned, name, started))


def run_scan(
    model: Any,
    data: Any = None,
    versus: Any = None,
    *,
    settings: ScanSettings | None = None,
    processor: Any = None,
    again: Again | None = None,
    **options: Any,
) -> tuple[Scanned, str]:
    """Return the evidence and the checks of a scan, and the model's name.

    ``again`` says how the scan was asked for, in the words of the command or of the call.
    """
    if isinstance(data, Stream):
        raise InputError(
            "scan: expected a data set, got a stream. To scan a stream, call "
            "sonde.findings.scan_stream."
        )
    if isinstance(model, str | Path) and is_store(to_path(model)):
        more = options | {"processor": processor}
        scanned, name = _scan_stores(to_path(model), data, versus, settings, more)
        stored = None if again is None else replace(again, is_stored=True)
        return replace(scanned, again=stored), name
    live = loaded_for_scan(model, (data, versus), processor, options)
    own, other = scan_streams(live, data, versus, settings, **options)
    scanned = scan_stream(
        own,
        name_of(data, own),
        other=other,
        other_name=name_of(versus, other),
        settings=settings,
        limited=options.get("limit") is not None,
    )
    name = model if isinstance(model, str) else live.name or type(live.module).__name__
    return replace(scanned, again=_with_classes(again, own, options)), name


def loaded_for_scan(
    model: Any, sources: Sequence[Any], processor: Any, options: dict[str, Any]
) -> Any:
    """Return the loaded model, or ``"-"`` for arrays, after a check of the data."""
    if (isinstance(model, str) and model == ARRAYS) or isinstance(model, Model):
        return model
    named = [value for name, value in options.items() if name.endswith("_column")]
    for where in sources:
        check_data(where, named, bool(options.get("skip_bad")))
    return load(model, processor=processor)


def scan_streams(
    live: Any, data: Any, versus: Any, settings: ScanSettings | None, **options: Any
) -> tuple[Stream, Stream | None]:
    """Return the rows that a scan reads of a loaded model, and those of OTHER."""
    further = () if isinstance(live, str) else ALL_ROWS

    def stream(where: Any, **more: Any) -> Stream:
        opened = read(live, where, further=further, **{**options, **more})
        opened = stream_in_sorted_order(opened)
        return (
            replace(opened, entry=True, check=False) if isinstance(opened, LiveStream) else opened
        )

    first = stream(data)
    other = None if versus is None else stream(versus, **columns_of(first), **_beside(first))
    if settings is not None and isinstance(first, LiveStream) and isinstance(other, LiveStream):
        first = with_columns_of(first, settings.chosen_detectors())
        other = replace(other, sites=first.sites, perturb=first.perturb)
        other = replace(other, with_logits=first.with_logits, logits_asked=first.logits_asked)
    return first, other


def _beside(mine: Stream) -> dict[str, Any]:
    """Return options for reading OTHER: labels numbered as in DATA, new labels allowed."""
    inputs = items_of(mine)
    if inputs is None:
        return {}
    classes = inputs.typed.get("classes") or (() if inputs.own_labels else inputs.label_names)
    return {"new_classes": True} | ({"classes": classes} if classes else {})


def _with_classes(again: Again | None, mine: Stream, options: dict[str, Any]) -> Again | None:
    """Return options to repeat the scan, with the classes that the scan used."""
    inputs = items_of(mine)
    classes = None if inputs is None else inputs.typed.get("classes")
    if again is None or not classes or options.get("classes"):
        return again
    named = ",".join(classes) if again.is_command else classes
    return replace(again, options={**again.options, "classes": named})


def _scan_stores(
    place: Path, data: Any, versus: Any, settings: ScanSettings | None, options: dict[str, Any]
) -> tuple[Scanned, str]:
    """Return a scan of stored rows; checks that need a live model do not apply."""
    stream = read(place, data, **options)
    other = None
    if versus is not None:
        if not (isinstance(versus, str | Path) and is_store(to_path(versus))):
            raise InputError(
                f"scan: expected another store to compare {place} with, got {name_of(versus)}. "
                "Write it with sonde read, or scan the model instead of the store."
            )
        other = read(versus, **options)
        own, its = stream.identity(), other.identity()
        name = first_difference(own, its, (*MODEL_FACTS, *READING_FIELDS))
        if name is not None:
            raise StateError(
                f"scan: {versus} contains rows of another model or rows that were read with other "
                f"options than {place}: {difference(name, own.get(name), its.get(name))}. Read "
                "both data sets with the same model and options."
            )
    scanned = scan_stream(
        stream, str(place), other=other, other_name=name_of(versus), settings=settings
    )
    return scanned, str(place)


def _typed(thing: Any) -> str | None:
    """Return a path or name as typed; None for an object."""
    return str(thing) if isinstance(thing, str | Path) else None


def name_of(data: Any, stream: Stream | None = None) -> str:
    """Return the data's name for a report: as typed with its split, or the object's kind."""
    inputs = items_of(stream)
    if inputs is not None and inputs.source.split is not None:
        return inputs.source.name
    return data_name(data)


def scan_pictures(report: dict[str, Any]) -> list[Picture]:
    """Return the pictures for which the JSON of a scan has numbers."""
    if not report["sites"]:
        return []
    parts = {name: report.get(name) for name in ("similarity", "labels", "prediction", "versus")}
    table = (report.get("answers") or {}).get("confusion")
    pictures = [
        confusion_picture(table) if table else None,
        *depth_pictures(report),
        spectrum_picture(report),
        similarity_picture(parts["similarity"]) if parts["similarity"] else None,
        units_picture(report.get("units") or []),
        labels_picture(report) if parts["labels"] else None,
        prediction_picture(parts["prediction"]) if parts["prediction"] else None,
        *measure_pictures(report),
        detectors_picture(report) if parts["versus"] else None,
        shift_picture(report) if parts["versus"] else None,
        scores_picture(report) if parts["versus"] else None,
        *rows_pictures(report),
    ]
    return [picture for picture in pictures if picture is not None]
