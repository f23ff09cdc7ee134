"""How the instruments of a bundle are written into its header, read back, and named.

A bundle names its instruments by their words in the catalogue, never by an importable path.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Detector, Instrument, reads_rows
from sonde.core.plan import Split
from sonde.core.renaming import current_names
from sonde.core.state import canonical, canonical_json, digest
from sonde.engine.requests import Task
from sonde.run.instruments.catalogue import distribution_of, find, method_of, word_of_class
from sonde.run.instruments.tasks import ErrorSample
from sonde.stats import Calibrated, Kept

Key = tuple[str, str]
MOST_NAMED = 3


def inner_of(instrument: Instrument) -> Instrument:
    """Return the instrument inside a calibration, or the instrument itself."""
    return instrument.detector if isinstance(instrument, Calibrated) else instrument


def word_of(instrument: Instrument | type[Instrument]) -> str:
    """Return the command-line word of an instrument, calibrated or not."""
    if isinstance(instrument, type):
        return word_of_class(instrument)
    return word_of_class(type(inner_of(instrument)))


def names_of(tasks: Sequence[Task]) -> list[Key]:
    """Return the (method, site) key of each task's result.

    The method is its word. If a class was asked for with different parameters at a site, the
    parameters that differ follow the word: ``knn(k=5)``.
    """
    places = [" & ".join(task.keys) for task in tasks]
    words = [word_of(task.instrument) for task in tasks]
    shared = Counter(zip(words, places, strict=True))
    mixed = {word for (word, _), n in shared.items() if n > 1}
    varying = {word: _varying([t for t, w in zip(tasks, words, strict=True) if w == word])
               for word in mixed}  # fmt: skip
    return [
        (f"{w}({_parameters(t, varying[w])})" if w in mixed else w, place)
        for t, w, place in zip(tasks, words, places, strict=True)
    ]


def place_of(method: str, site: str) -> str:
    """Return a method's site for display, with the shared parts of its sites printed once.

    If the method reads no rows of the site, the answer is ``logits``.

    Examples
    --------
    >>> place_of("msp", "layers.3:out"), place_of("knn(k=5)", "layers.3:out")
    ('logits', 'layers.3:out')
    >>> place_of("cka", "layers.0.mlp:out & layers.1.mlp:out")
    'layers.{0,1}.mlp:out'
    >>> place_of("clue", " & ".join(f"layers.{i}:out" for i in range(12)))
    'layers.{0..11}:out (12)'
    """
    word, keys = method.partition("(")[0], site.split(" & ")
    of_word = method_of(word)
    if of_word is not None and not reads_rows(of_word.cls(**of_word.cls.examples[0])):
        return "logits"
    return site if len(keys) == 1 else _shared_once(keys)


def _shared_once(keys: Sequence[str]) -> str:
    """Return several sites as one text, with the parts that differ in braces."""
    parts = [re.split(r"(?<=[.:@|])|(?=[.:@|])", key) for key in keys]
    head = _shared(parts)
    tail = _shared([part[head:][::-1] for part in parts])
    names = ["".join(part[head : len(part) - tail]) for part in parts]
    if not all(names):
        head, tail, names = 0, 0, list(keys)
    few = len(names) <= MOST_NAMED
    listed = ",".join(names) if few else f"{names[0]}..{names[-1]}"
    end = "".join(parts[0][len(parts[0]) - tail :]) + ("" if few else f" ({len(keys)})")
    return "".join(parts[0][:head]) + "{" + listed + "}" + end


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """Return the length of the longest common prefix of all sequences."""
    alike = (len(set(column)) == 1 for column in zip(*parts, strict=False))
    return sum(1 for _ in takewhile(bool, alike))


def _varying(tasks: Sequence[Task]) -> list[str]:
    """Return the parameters that differ between instruments of one class."""
    instruments = [inner_of(t.instrument) for t in tasks]
    names = [f.name for f in fields(instruments[0])]  # type: ignore[arg-type]
    return [n for n in names if len({repr(getattr(i, n)) for i in instruments}) > 1]


def _parameters(task: Task, names: Iterable[str]) -> str:
    inner = inner_of(task.instrument)
    return ", ".join(f"{name}={getattr(inner, name)!r}" for name in names)


def entry_of(task: Task) -> dict[str, Any]:
    """Return the header entry of a task."""
    inner = inner_of(task.instrument)
    calibrated = task.instrument if isinstance(task.instrument, Calibrated) else None
    distribution = distribution_of(type(inner))
    return {
        "instrument": word_of(inner),
        **({} if distribution is None else {"distribution": distribution}),
        "params": {f.name: canonical(getattr(inner, f.name)) for f in fields(inner)},  # type: ignore[arg-type]
        "calibrated": None if calibrated is None else calibrated.m,
        "reduction": None if calibrated is None else calibrated.reduction,
        "kept": None if calibrated is None or calibrated.kept is None else asdict(calibrated.kept),
        "sites": list(task.keys),
        "digest": digest(inner),
    }


def spec_of(tasks: Iterable[Task]) -> str:
    """Return the hash of the methods with all their parameters and sites."""
    return digest(sorted(canonical_json(entry_of(task)) for task in tasks))


def tasks_of(
    header: dict[str, Any], further: tuple[type[Instrument], ...], path: Path
) -> tuple[list[Task], Split | None, ErrorSample | None]:
    """Return the tasks, the split and the error sample in a header.

    Raises
    ------
    StateError
        If this version cannot read the header, or an instrument has other parameters today.
    """
    try:
        split = None if header["split"] is None else Split(**header["split"])
        raw = header["sample"]
        sample = None
        if raw is not None:
            sinks = bool(raw.get("sinks", False))
            sample = ErrorSample(tuple(raw["columns"]), bool(raw["groups"]), split, sinks)
        tasks = [_task_of(entry, further) for entry in header["entries"]]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = str(error).rstrip(".")
        raise StateError(
            f"Fitted.load: the header of {path} contains entries that this version does not "
            f"know: {reason}. Fit it again with this version. If it holds your own classes, pass "
            "them: Fitted.load(path, [Class])."
        ) from error
    return tasks, split, sample


def _task_of(entry: dict[str, Any], further: tuple[type[Instrument], ...]) -> Task:
    cls = _class_of(entry, further)
    parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["params"].items()}
    instrument = cls(**current_names(cls, parameters))
    if entry["digest"] not in (digest(instrument), digest(instrument, former=True)):
        raise StateError(
            f"Fitted.load: {entry['instrument']} has different parameters in this version "
            "than when the state was fitted. Fit it again."
        )
    if entry["calibrated"] is not None:
        if not isinstance(instrument, Detector):
            raise StateError(f"Fitted.load: {entry['instrument']} is not a detector.")
        m, how = int(entry["calibrated"]), entry.get("reduction")
        kept = Kept(**entry["kept"]) if entry.get("kept") else None
        instrument = Calibrated(instrument, m, how, kept)
    return Task(instrument, tuple(str(s) for s in entry["sites"]))


def _class_of(entry: dict[str, Any], further: tuple[type[Instrument], ...]) -> type[Instrument]:
    """Return the class of the word in an entry."""
    try:
        return find(entry["instrument"], further)
    except InputError as error:
        if "distribution" not in entry:
            raise
        raise StateError(
            f"Fitted.load: {entry['instrument']!r} is a method of the package "
            f"{entry['distribution']!r}, which is not installed here. Install it: pip install "
            f"{entry['distribution']}."
        ) from error
