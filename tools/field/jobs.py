"""Jobs of the README on healthy subjects, checked against plain torch where there is a truth."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tools.field.judging import said
from tools.field.plain import Plain, figure, module, plain
from tools.field.running import SECONDS, Outcome, command, copy_of, scanned
from tools.field.subjects import Subject

RAN, TRUE, WRONG = "ran", "true", "wrong"
Checked = tuple[Outcome, str, str]


def scan(subject: Subject, place: Path, made: Plain) -> dict[str, Any]:
    """Scan: the figure is plain torch's, nothing healthy is accused, what it costs."""
    got = scanned(subject, place, subject.flags, SECONDS)
    report = said(got["screen"], got)
    true = figure(subject, made, subject.flags)
    if subject.kind == "regression":  # the first screen says how far off answers are
        off = made.answers[:, 0].double() - torch.tensor([float(v) for v in made.labels or ()])
        true = float(off.square().mean().sqrt())
    verdict = got["outcome"] or RAN
    if got["outcome"] is None and true is not None:
        near = got["figure"] is not None and abs(got["figure"] - true) < 1e-4 * max(1.0, true)
        verdict = TRUE if near else WRONG
    return {
        "verdict": verdict,
        "said": f"{_number(got['figure'])}, plain torch {_number(true)}",
        "cause": report.cause,
        "loud": list(report.loud),
        "seconds": got["seconds"],
        "plain_seconds": round(made.seconds, 2),
        "errors": got["errors"] if got["outcome"] else "",
    }


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def read(subject: Subject, place: Path, made: Plain) -> Checked:
    """Read: the rows at the head's site are plain torch's answers."""
    head = _head(subject, place)
    sites = ["--sites", head] if head else []
    words = ["read", subject.model, subject.data, *subject.flags, *sites, "-o", "acts"]
    outcome = command(words, place)
    if outcome.verdict or not head:
        return outcome, RAN, ""
    import sonde

    batches = list(sonde.read(place / "acts"))  # texts come by length: `order` is their line
    rows = torch.cat([batch.rows[site] for batch in batches for site in batch.rows])
    order = torch.cat([batch.order for batch in batches])
    gap = float((rows.double() - made.answers[order].double()).abs().max())
    size = float(made.answers.abs().max())
    return outcome, TRUE if gap <= 1e-4 * size else WRONG, f"gap {gap:.1e} of {size:.3g}"


def _head(subject: Subject, place: Path) -> str:
    """Return the name of a last linear layer whose output is the answer, or ""."""
    if subject.model != "nets:make":
        return "classifier" if subject.kind == "texts" else ""
    net = module(place)
    net = net[0] if isinstance(net, tuple) else net
    names = dict(net.named_modules())
    if subject.kind == "regression":
        return ""
    return next((n for n in ("head", "body._fc") if n in names), "")


def score(subject: Subject, place: Path, made: Plain) -> Checked:
    """Fit and score: a p-value in 0..1 for every row."""
    words = [subject.model, subject.data, *subject.flags]
    fitted = command(["fit", "knn", *words, "-o", "probe.sonde"], place)
    if fitted.verdict:
        return fitted, RAN, "fit"
    outcome = command(["score", "probe.sonde", *words, "-o", "scores.jsonl"], place)
    if outcome.verdict:
        return outcome, RAN, "score"
    lines = [json.loads(v) for v in (place / "scores.jsonl").read_text("utf-8").splitlines()]
    p = np.array([row["p"] for row in lines], dtype=float)
    good = len(p) == len(made.answers) and bool(((p >= 0) & (p <= 1)).all())
    return outcome, TRUE if good else WRONG, f"{len(p)} rows, median p {np.median(p):.2f}"


def compare(subject: Subject, place: Path, _: Plain) -> Checked:
    """Compare a model with itself: every layer is similar to itself by 1."""
    words = ["compare", subject.model, subject.model, subject.data, *subject.flags]
    outcome = command([*words, "-o", "compare.json"], place)
    return outcome, RAN, ""


def compress(subject: Subject, place: Path, _: Plain) -> Checked:
    """Compress to 4 bits: a smaller folder, or a refusal in one line before any work."""
    words = ["compress", subject.model, subject.data, *subject.flags, "--to", "4bit", "-o", "small"]
    outcome = command(words, place)
    if outcome.verdict or not (place / "small").exists():
        return outcome, RAN, ""
    before, after = weight_bytes(old_weights(place)), weight_bytes(place / "small")
    return outcome, TRUE if 0 < after < before else WRONG, f"{after / before:.2f} of the bytes"


def old_weights(place: Path) -> Path:
    """Return the folder of a subject with its weights: ``model``, or the whole for a factory."""
    return place / "model" if (place / "model").is_dir() else place


def weight_bytes(folder: Path) -> int:
    """Return the bytes of all weight files that lie in a folder itself.

    Raises
    ------
    FileNotFoundError
        If none does: a ratio to no bytes says nothing.
    """
    files = list(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    return sum(p.stat().st_size for p in files)


JOBS: dict[str, Callable[[Subject, Path, Plain], Any]] = {
    job.__name__: job for job in (scan, read, score, compare, compress)
}


def done(name: str, job: str) -> dict[str, Any]:
    """Do a job on a healthy subject."""
    with copy_of(name) as (subject, place):
        made = plain(subject, place, subject.flags)
        got = JOBS[job](subject, place, made)
        shutil.rmtree(place / "small", ignore_errors=True)
    if isinstance(got, dict):
        return got
    outcome, verdict, words = got
    last = (outcome.errors.strip().splitlines() or [""])[-1]
    return {
        "verdict": outcome.verdict or verdict,
        "said": words or (last[:300] if outcome.verdict else ""),
        "seconds": round(outcome.seconds, 1),
        "errors": outcome.errors[-1500:] if outcome.verdict else "",
    }
