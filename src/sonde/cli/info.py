"""``sonde info``: the contents of a file from its header, and flags of its results."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import tyro

from sonde.cli.console import say, say_json
from sonde.cli.options import Printing, named
from sonde.core.errors import InputError, StateError
from sonde.core.wording import gib, plural

FITTED = "fitted state"


@dataclass(frozen=True)
class Info:
    """Describe a state, a store, a run directory, a report, an export or a GGUF file.

    For a fitted state it also prints the flags of its results, and --plot draws them.

    Example: sonde info probe.sonde --plot -
    """

    file: Annotated[
        tyro.conf.Positional[Path],
        named(
            "FILE",
            "a .sonde file, a report, an export, a GGUF file, or a folder of sonde read or a run",
        ),
    ]
    plot: Annotated[
        Path | None,
        named("FILE", "plot the results: to a page (.html), to JSON, or to the terminal (-)"),
    ] = None
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Print the header."""
        facts = describe(self.file)
        if self.plot is not None:
            return _plotted(self.file, facts["kind"], self.plot)
        if facts["kind"] == FITTED:
            from sonde.cli._flags import flags_in

            facts["flags"] = flags_in(self.file)
        if self.printing.json:
            say_json(facts)
        else:
            say(_facts_text(facts))
        return 0


def _plotted(path: Path, kind: str, output: Path) -> int:
    """Draw the results of a fitted state."""
    if kind != FITTED:
        raise InputError(f"info: --plot draws the results of a fitted state, got a {kind}: {path}.")
    from sonde.report.charts import chart_to_text, charts_document
    from sonde.report.documents import save_document
    from sonde.run.fitting.fitted import Fitted

    charts = charts_document(Fitted.load(path), str(path))
    if not charts["charts"]:
        raise InputError(
            f"info: no result in {path} can be plotted; results of detectors never can."
        )
    if str(output) == "-":
        say("\n".join(chart_to_text(one["chart"]) for one in charts["charts"]))
    else:
        say(f"wrote {save_document(charts, output)}")
    return 0


def describe(path: Path) -> dict[str, Any]:
    """Return the facts of a file as JSON values.

    Raises
    ------
    InputError
        If there is no such file, or it is of a kind that sonde does not write.
    """
    if not path.exists():
        raise InputError(f"info: there is no file {path}.")
    from sonde.store.exporting import describe_export, is_export

    if is_export(path):
        return describe_export(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder(path)
    if suffix == ".sonde":
        return _state(path)
    if suffix in (".json", ".html", ".htm"):
        return _report(path)
    if suffix == ".gguf":
        return _gguf(path)
    raise InputError(
        "info: expected a .sonde file, a store, a run directory, a report, an export or a GGUF "
        f"file, got {path}."
    )


def _gguf(path: Path) -> dict[str, Any]:
    """Return the facts of a model or a control vector in llama.cpp's format."""
    from sonde.files.gguf import CONTROL_VECTOR, GGUFHeader

    header = GGUFHeader.read(path)
    facts, family, size = header.facts, header.architecture, path.stat().st_size
    if family == CONTROL_VECTOR:
        return {
            "kind": "control vector in GGUF",
            "model": facts.get("controlvector.model_hint"),
            "after_blocks": [int(name.rpartition(".")[2]) for name in header.shapes],
            "dim": max((shape[-1] for shape in header.shapes.values()), default=0),
            "size_bytes": size,
        }
    return {
        "kind": "model in GGUF",
        "name": facts.get("general.name"),
        "architecture": family,
        "n_blocks": facts.get(f"{family}.block_count"),
        "dim": facts.get(f"{family}.embedding_length"),
        "context": facts.get(f"{family}.context_length"),
        "vocabulary": facts.get("tokenizer.ggml.tokens"),
        "chat_template": "yes" if "tokenizer.chat_template" in facts else "no",
        "parameters": header.n_values,
        "types": [{"type": k, "values": n} for k, n in header.type_counts().items()],
        "n_tensors": len(header.shapes),
        "size_bytes": size,
    }


def _folder(path: Path) -> dict[str, Any]:
    from sonde.run.comparing.describe_run import describe_run
    from sonde.run.comparing.verify_run import is_run_directory
    from sonde.run.comparing.verify_track import is_track
    from sonde.store import describe_store, is_store

    if not is_store(path) and (path / "config.json").is_file():
        raise InputError(
            f"info: {path} is a model, which sonde did not write. To look inside it: "
            f"sonde scan {shlex.quote(str(path))} DATA."
        )
    if is_track(path):
        return _track(path)
    return describe_run(path) if is_run_directory(path) else describe_store(path)


def _track(path: Path) -> dict[str, Any]:
    from sonde.run.training.track import Track

    track = Track(path)
    steps, first = track.steps, _state(track.file(track.steps[0]))
    return {
        "kind": "track of a training",
        "n_steps": len(steps),
        "first_step": steps[0],
        "last_step": steps[-1],
        **{name: first[name] for name in ("methods", "sites")},
        "size_bytes": sum(track.file(step).stat().st_size for step in steps),
    }


def _report(path: Path) -> dict[str, Any]:
    from sonde.report import load_report
    from sonde.report.documents import describe_page, other_page

    other = other_page(path)
    if other is not None:
        return describe_page(path, other)
    report = load_report(path)
    return {
        "kind": "report",
        "schema": report["schema"],
        "verdict": report["verdict"],
        "model": report["provenance"]["model"]["name"],
        "data": report["provenance"]["data"]["name"],
        "n_sites": len(report["sites"]),
        "size_bytes": path.stat().st_size,
    }


def _state(path: Path) -> dict[str, Any]:
    from sonde.files.state_file import read_header
    from sonde.run.comparing.verify_state import refuse_future

    refuse_future(path)
    header = read_header(path)
    if "entries" not in header:
        return _bare(header, path)
    entries = header["entries"]
    units = header.get("units", [])
    try:
        return _facts(header, entries, units, path)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"info: sonde did not write the header of {path}: {error!r}.") from error


_BARE: dict[Any, tuple[str, tuple[str, ...]]] = {
    "sonde-running": ("running state", ("sites", "n_rows", "digest")),
    "sonde-watch": ("alarms on a stream", ("watch",)),
}


def _bare(header: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the facts of a state that is not a bundle: of a run, a stream, or ``RunFlags``."""
    kind, names = _BARE.get(
        header.get("format"), ("state of a run", ("plan", "units", "passes", "counters"))
    )
    return {
        "kind": kind,
        **{name: header[name] for name in names if name in header},
        "size_bytes": path.stat().st_size,
    }


def _facts(header: dict[str, Any], entries: Any, units: Any, path: Path) -> dict[str, Any]:
    return {
        "kind": FITTED,
        "version": header.get("version"),
        "methods": sorted({e["instrument"] for e in entries}),
        "n_results": len(entries),
        "sites": [s["text"] for s in header.get("sites", [])],
        "reducers": sorted({s["reducer"] for s in header.get("sites", []) if "reducer" in s}),
        "model": header.get("model"),
        "recipe": header.get("recipe"),
        "calibration": _calibration(entries, header.get("split")),
        "data": header.get("data"),
        "n_units": _n_units(units),
        "units": units,
        "counters": header.get("counters"),
        "size_bytes": path.stat().st_size,
    }


def _calibration(entries: list[dict[str, Any]], split: dict[str, Any] | None) -> list[str]:
    """Return the calibration data of detectors, and which score of an example they use."""
    lines: list[str] = []
    for entry in entries:
        if entry.get("calibrated") is None:
            continue
        where = (
            "other rows" if entry.get("kept") else f"{split['held']:.0%} held out" if split else ""
        )
        score = f"{entry['reduction']} of an example" if entry.get("reduction") else "each row"
        lines.append(f"{where}, {score}")
    return sorted(set(lines))


def _n_units(entries: list[dict[str, Any]]) -> int:
    """Return how many units of data were read, each counted once over all passes."""
    most: dict[str, int] = {}
    for entry in entries:
        n = sum(b - a + 1 for a, b in entry["units"])
        most[entry["data"]] = max(n, most.get(entry["data"], 0))
    return sum(most.values())


def _facts_text(facts: dict[str, Any]) -> str:
    """Return the facts as text: one line each, broken at 80 columns."""
    special = {FITTED: _state_words, "store of rows": _store_words}
    words = special.get(facts["kind"], _plain_words)(facts)
    return "\n".join(_lines(name, value) for name, value in words.items() if value)


def _state_words(facts: dict[str, Any]) -> dict[str, str]:
    """Describe a fitted state, without fingerprints and raw lists."""
    data, counters = facts["data"] or {}, facts["counters"] or {}
    dropped = [k.partition("|")[2] for k, v in counters.items() if k.startswith("nonfinite|") and v]
    groups = f" in {plural(data.get('n_groups') or 0, 'group')}" if data.get("grouped") else ""
    model, n_units = facts["model"] or {}, facts["n_units"]
    options = (facts["recipe"] or {}).get("options", {})
    examples, units = plural(data.get("n_examples") or 0, "example"), plural(n_units, "unit")
    return {
        "kind": f"fitted state, version {facts['version']}, {gib(facts['size_bytes'])}",
        "methods": ", ".join(facts["methods"]),
        "sites": f"{len(facts['sites'])}: {', '.join(facts['sites'])}",
        "reducer": ", ".join(facts["reducers"]),
        "data": f"{examples}{groups}, {units}",
        "calibrated on": "; ".join(facts["calibration"]),
        "read with": ", ".join(f"{name}={value}" for name, value in options.items()),
        "flags": _flag_words(facts.get("flags") or []),
        "not finite": f"rows were left out at {', '.join(dropped)}" if dropped else "",
        "model": " ".join(filter(None, (_short(model.get("model")), model.get("dtype")))),
        "more": "--json prints fingerprints, plans and counts",
    }


def _flag_words(flags: list[dict[str, Any]]) -> str:
    from sonde.cli._flags import flag_texts

    return "; ".join(flag_texts(flags))


def _store_words(facts: dict[str, Any]) -> dict[str, str]:
    """Describe a store, without fingerprints and tables."""
    model, sites = facts["model"] or {}, facts["sites"]
    groups = f" in {plural(facts['n_groups'], 'group')}" if facts["grouped"] else ""
    sets = f", {plural(facts['n_data_sets'], 'data set')}" if facts["n_data_sets"] > 1 else ""
    units = f"{plural(facts['n_units'], 'unit')} of {facts['unit_size']}"
    files = plural(facts["n_files"], "file")
    listed = ", ".join(f"{s['key']} ({s['dim']} {s['dtype']})" for s in sites)
    part = f"1 of {facts['every']} rows of tokens or patches" if facts["every"] > 1 else ""
    return {
        "kind": f"store of rows, {files}, {gib(facts['size_bytes'])}",
        "sites": f"{len(sites)}: {listed}",
        "reducer": ", ".join(dict.fromkeys(s["reducer"] for s in sites)),
        "not in all": partial_sites(facts),
        "data": f"{plural(facts['n_examples'], 'example')}{groups}, {units}{sets}",
        "columns": ", ".join(f"{name} ({kind})" for name, kind in facts["columns"].items()),
        "kept": part,
        "written": f"{facts['ranges_written']} ranges of units",
        "in use by": facts["in_use_by"] or "",
        "model": " ".join(filter(None, (_short(model.get("model")), model.get("dtype")))),
        "more": "--json prints fingerprints, plans and tables",
    }


def partial_sites(facts: dict[str, Any]) -> str:
    """Return the sites that some data sets of a store lack, with the number that have them."""
    of = f"of {facts['n_data_sets']} data sets"
    return ", ".join(f"{s['key']} ({s['n_data_sets']} {of})" for s in facts["partial_sites"])


def _plain_words(facts: dict[str, Any]) -> dict[str, str]:
    """Return facts with sizes and nested facts as text."""
    words: dict[str, str] = {}
    for name, value in facts.items():
        if name == "size_bytes":
            words["size"] = gib(value)
        elif isinstance(value, dict):
            words[name] = ", ".join(f"{_word(v)} {k.replace('_', ' ')}" for k, v in value.items())
        elif isinstance(value, list):
            words[name] = ", ".join(map(_word, value))
        else:
            words[name.removeprefix("n_").replace("_", " ")] = _word(value)
    return words


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k}={_word(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " ".join(map(_word, value))
    return "" if value is None else str(value)


def _short(fingerprint: str | None) -> str:
    return "" if fingerprint is None else f"fingerprint {fingerprint[:12]}"


def _lines(name: str, value: str) -> str:
    """Return a name and its value as lines of at most 80 columns."""
    return "\n".join(wrap(value, 80, initial_indent=f"{name:<14} ", subsequent_indent=" " * 15))
