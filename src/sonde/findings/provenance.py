"""Origin of a report, and the limits of its scan."""

import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sonde import __version__
from sonde.core.repacking import count_weights
from sonde.engine.progress import peak_memory_bytes
from sonde.findings.evidence.gather import ScanStatistics
from sonde.findings.evidence.record import DataEvidence
from sonde.findings.scan import Gathered, Scanned
from sonde.findings.words.text import plural
from sonde.run.reading.notes import items_of
from sonde.tap import LiveStream
from sonde.tap.model.sites import ENTRY

PACKAGES = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "pyarrow")

CANNOT_SEE = (
    "Only this data set was read; another data set can have different states.",
    "Only the listed sites were read; what happens between them was not.",
    "Averages over an example hide differences between its tokens or patches.",
    "No cause was tested: no unit was switched off and no weight was changed.",
    "Backdoors that these data do not trigger leave no trace here.",
    "Quantised or low-rank weights that write to a residual stream cannot be detected in "
    "its states.",
    "A single scan cannot detect slow drift over time.",
    "In 16-bit types, differences between runs below 3 % cannot be detected.",
    "Pairs of rows are compared within samples of at most 2,048 rows.",
)


def provenance(scanned: Scanned, model: str, started: float) -> dict[str, Any]:
    """Return the report's block on its origin."""
    stream, settings = scanned.stream, scanned.settings
    data = scanned.evidence.data
    reducers = sorted({str(s.reducer) for s in stream.schema if "|" not in s.key})
    other = None
    if scanned.evidence.versus is not None and scanned.other is not None:
        other = _data(scanned.evidence.versus.other_data, scanned.other)
    return {
        "model": _model(stream, model),
        "data": _data(data, scanned.gathered),
        "other": other,
        "reducer": ", ".join(reducers) or None,
        "special_tokens": _special(stream),
        "sites": _sites(scanned),
        "seed": data.seed,
        "unit_size": settings.unit_size,
        "workers": settings.workers,
        "threads": scanned.gathered.plan.threads,
        "thresholds": {
            f"{code}.{name}": value
            for code, rule in scanned.rules.items()
            for name, value in rule.moved().items()
        },
        "instruments": _instruments(scanned.gathered),
        "versions": {"python": platform.python_version(), **_versions()},
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.time() - started, 2),
        "peak_memory_bytes": peak_memory_bytes(),
        "command": settings.command or _call(scanned, model),
        "state_id": scanned.gathered.plan.id,
    }


def _sites(scanned: Scanned) -> str:
    """Return the number of sites read, and of those with a finite row if fewer."""
    keys = [s.key for s in scanned.stream.schema if not s.key.endswith(f"|{ENTRY}")]
    n_read = len({key.split("|")[0] for key in keys})
    n_kept = len(scanned.evidence.sites)
    many = plural(n_read, "site")
    return many if n_kept >= n_read else f"{n_kept:,} of {many} with finite rows"


def _call(scanned: Scanned, model: str) -> str:
    """Return the Python call of a scan that was not started as a command."""
    names = [model, scanned.evidence.data.name]
    if scanned.evidence.versus is not None:
        names.append(scanned.evidence.versus.other_data.name)
    return f"sonde.scan({', '.join(map(repr, names))})"


def _versions() -> dict[str, str]:
    versions = {"sonde": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _model(stream: Any, name: str) -> dict[str, Any]:
    identity = stream.identity()
    facts = {
        "name": name or "feature arrays",
        "fingerprint": identity.get("model"),
        "config_hash": identity.get("config"),
        "class": None,
        "n_parameters": None,
        "dtype": identity.get("dtype"),
        "device": None,
        "attention": identity.get("attn"),
        "mode": None,
    }
    if isinstance(stream, LiveStream):
        module = stream.model.module
        first = next(module.parameters(), None)
        facts |= {
            "class": type(module).__name__,
            "n_parameters": count_weights(module),
            "device": None if first is None else str(first.device),
            "mode": "train (read in eval mode, then restored)" if module.training else "eval",
        }
    return facts


def _data(data: DataEvidence, gathered: Gathered) -> dict[str, Any]:
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "n_examples": gathered.outcome.counters.get("examples", data.n),
        "n_rows": gathered.outcome.counters.get("examples", data.n),
        "n_groups": data.n_groups,
        "group_column": "given" if data.grouped else None,
        "label_column": "given" if data.has_labels or data.target is not None else None,
        "n_skipped": data.n_skipped,
        "n_truncated": data.n_truncated,
        "sample_of": data.sample_of,
        **_texts_cut(data),
    }


def _texts_cut(data: DataEvidence) -> dict[str, int]:
    """Return how many texts the pieces come from; nothing if no text was cut into pieces."""
    if data.piece is None or data.size is None or not bool((data.piece > 0).any()):
        return {}
    return {"n_texts": int((data.piece == 0).sum())}


def _special(stream: Any) -> str | None:
    if not isinstance(stream, LiveStream):
        return None
    return "kept" if stream.keep_special else "left out of tokens and mean"


def _instruments(gathered: Gathered) -> list[dict[str, Any]]:
    statistics: ScanStatistics = gathered.statistics
    counters = gathered.outcome.counters
    groups: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for statistic, keys, where in statistics.roles.values():
        rows = keys[-1].partition("|")[2] or "pooled"
        if rows == ENTRY:  # what the first site receives, for its update alone
            continue
        if type(where).__name__ == "Subsample":
            rows = f"1/8 of {rows}"
        groups.setdefault((type(statistic).__name__, rows), []).append(keys)
    return [
        {
            "name": name,
            "sites": len(keys),
            "rows": rows,
            "n_rows": counters.get(f"rows|{keys[0][-1]}"),
        }
        for (name, rows), keys in sorted(groups.items())
    ]


def limits(scanned: Scanned) -> list[str]:
    """Return the limits of this scan, including results left out for their size."""
    texts: list[str] = list(CANNOT_SEE)
    inputs = items_of(scanned.stream)
    if inputs is not None and inputs.own_labels and (why := inputs.listing.labels.reason):
        texts.append(f"{why[0].upper()}{why[1:]}.")
    if untried := scanned.evidence.budget.text():
        texts.append(f"{untried[0].upper()}{untried[1:]}.")
    n_wide = sum(s.is_wide for s in scanned.evidence.sites)
    if n_wide:
        texts.append(
            f"At {plural(n_wide, 'site')} of more than 2,048 units only variances were kept; "
            "spectra, ranks and similarity there come from the sampled rows."
        )
    withheld = [c.code for c in scanned.checks if c.state in ("withheld", "failed")]
    if withheld:
        texts.append(f"Checks that could not run: {', '.join(withheld)}.")
    if torch.get_default_dtype() != torch.float32:
        texts.append(f"torch's default type was {torch.get_default_dtype()}.")
    return texts
