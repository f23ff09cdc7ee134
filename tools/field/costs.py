"""``python -m tools.field.costs``: processor time of a scan beside the plain forward of its rows.

Processor time, one thread, so that a busy machine gives the same figures; every subject is
measured `--times` times, the plain forward, the scan and the forwards of its trials in one run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tools.field.obtain import ROOT
from tools.field.plain import plain
from tools.field.running import commit
from tools.field.subjects import Subject, copied
from tools.field.table import table_row

MOST_TRIALS = (3.0, 20.0)
"""Forwards of the data, or seconds, that all trials may take."""


@dataclass(frozen=True)
class Case:
    """What is scanned, and its budget: a number of plain forwards, and seconds.

    Parameters
    ----------
    name, subject : str
    times, seconds : float
    prepare : callable
        Changes the copy of the subject; returns other flags, or None.
    """

    name: str
    subject: str
    times: float
    seconds: float
    prepare: Callable[[Path, Subject], Sequence[str] | None] = lambda *_: None


def resized(size: int, each: int) -> Callable[[Path, Subject], None]:
    """Keep every so manieth picture, at another size: answers get worse, so that trials run."""

    def prepare(place: Path, _: Subject) -> None:
        for i, path in enumerate(sorted((place / "photos").rglob("*.png"))):
            if i % each:
                path.unlink()
            else:
                with Image.open(path) as opened:
                    Image.Image.resize(opened, (size, size)).save(path)

    return prepare


def first(n: int) -> Callable[[Path, Subject], None]:
    """Keep the first rows."""

    def prepare(place: Path, said: Subject) -> None:
        path = place / said.data
        path.write_text("".join(path.read_text("utf-8").splitlines(True)[:n]), "utf-8")

    return prepare


def one_check(place: Path, said: Subject) -> Sequence[str]:
    """Ask for one check that needs no trial."""
    resized(64, 2)(place, said)
    return [*said.flags, "--only", "SND034"]


CASES = (
    Case("classifier of texts", "libraries", 1.3, 8, first(100)),
    Case("own head on texts", "languages", 1.3, 8, first(100)),
    Case("embedding of texts", "minilm", 1.3, 8, first(100)),
    Case("language model, sonde:stdlib", "", 1.3, 8),
    Case("convolutional, 28 px", "garments", 4, 8),
    Case("convolutional, 64 px", "stamps", 4, 8, resized(64, 2)),
    Case("convolutional, 224 px", "stamps", 4, 8, resized(224, 4)),
    Case("64 px with --only SND034", "stamps", 4, 8, one_check),
    Case("table of 285 rows", "tumours", 0, 3),
    Case("table of 221 rows, a regression", "diabetes", 0, 3),
)

TIMED = """
import json, sys, time
from sonde.tap.model import watch as watching
from sonde.cli.main import main
spent, n = [0.0], [0]
Session = watching.Session
class Timed:
    def __init__(self, *args, **kwargs): self.session = Session(*args, **kwargs)
    def __enter__(self): self.session.__enter__(); return self
    def __exit__(self, *args): return self.session.__exit__(*args)
    def run(self, args, kwargs):
        began = time.process_time()
        try: return self.session.run(args, kwargs)
        finally:
            if watching._METER.get() is not None:
                spent[0] += time.process_time() - began; n[0] += 1
watching.Session = Timed
try: code = main(sys.argv[2:])
except SystemExit as ended: code = ended.code
json.dump({"code": code, "scan": time.process_time(), "trials": spent[0], "n_trials": n[0]},
          open(sys.argv[1], "w"))
"""


def measured(case: Case) -> dict[str, Any]:
    """Return seconds of the plain forward, of a scan, and of the forwards of its trials."""
    place = Path(tempfile.mkdtemp(prefix="sonde-costs-"))
    try:
        words, forward = (_language_model if not case.subject else _subject)(case, place)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"NO_COLOR": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        typed = [sys.executable, "-c", TIMED, "timed.json", "scan", *words, "-o", "r.json"]
        ended = subprocess.run(typed, cwd=place, env=environment, capture_output=True, text=True)
        if not (place / "timed.json").exists():
            raise RuntimeError(ended.stderr[-1000:])
        found = json.loads((place / "timed.json").read_text("utf-8"))
        if found["code"] not in (0, 1, None):
            raise RuntimeError(ended.stderr[-1000:])
        return {"case": case.name, "plain": forward, "commit": commit(), **found}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _subject(case: Case, place: Path) -> tuple[list[str], float]:
    said = copied(case.subject, place)
    flags = case.prepare(place, said)
    flags = list(said.flags if flags is None else flags)
    return [said.model, said.data, *flags], plain(said, place, flags).seconds


def _language_model(_: Case, place: Path) -> tuple[list[str], float]:
    """Return the words of a scan of docstrings, and the time of a forward of the same texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sonde.data.shipped import model_directory

    first(100)(place, copied("minilm", place))
    folder = model_directory("sonde:stdlib")
    net = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [json.loads(v)["text"] for v in (place / "data.jsonl").read_text("utf-8").splitlines()]
    began = time.process_time()
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            for i in range(0, ids.shape[1], 256):
                net(ids[:, i : i + 256])
    return ["sonde:stdlib", "data.jsonl"], time.process_time() - began


def told(found: Sequence[dict[str, Any]]) -> str:
    """Return a table of all runs, with the range over repeats."""
    head = ("case", "runs", "plain, s", "scan, s", "budget, s", "trials, s", "trials' forwards")
    made = [table_row(*head), table_row(*["---"] * len(head))]
    for case in CASES:
        runs = [r for r in found if r["case"] == case.name]
        if runs:
            budgets = [case.times * r["plain"] + case.seconds for r in runs]
            over = sum(r["scan"] > b for r, b in zip(runs, budgets, strict=True))
            said = f"{_range(budgets)}, {'kept' if not over else f'over in {over} of {len(runs)}'}"
            seconds = (_range([r[k] for r in runs]) for k in ("plain", "scan"))
            n = {str(r["n_trials"]) for r in runs}
            trials = _range([r["trials"] for r in runs])
            most = [max(MOST_TRIALS[0] * r["plain"], MOST_TRIALS[1]) for r in runs]
            trials += "" if all(r["trials"] <= m for r, m in zip(runs, most, strict=True)) else " !"
            made.append(
                table_row(case.name, len(runs), *seconds, said, trials, ", ".join(sorted(n)))
            )
    commits = ", ".join(sorted({r["commit"] for r in found}))
    return "\n".join([*made, "", f"At {commits}."])


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.field.costs", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("reports/costs.jsonl"))
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases with these words")
    parser.add_argument("--times", type=int, default=2)
    typed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    typed.results.parent.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if typed.only and not any(word in case.name for word in typed.only):
            continue
        while len([r for r in _kept(typed.results) if r["case"] == case.name]) < typed.times:
            got = measured(case)
            print(json.dumps(got), flush=True)
            with typed.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(got) + "\n")
    print(told(_kept(typed.results)))
    return 0


def _kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(v) for v in path.read_text("utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
