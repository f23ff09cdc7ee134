"""Traces between delimiters, from a file to the scores of a detector over all sites."""

import csv
import json
from typing import Any

import numpy as np
import pytest
import torch

from cli_case import run_words
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.read import read

SPAN = ("--span", "<t>,</t>")


def write(path, n, seed):
    """Write traces of which every second one ends badly, in other letters."""
    rng, lines = np.random.default_rng(seed), []
    for i in range(n):
        failed = i % 2
        words = "".join(rng.choice(list("xyz" if failed else "abc"), rng.integers(2, 6)))
        text = f"{rng.integers(10)}<t>{words}</t>."
        row = {"text": text, "label": failed, "group": f"{path.stem} {i // 3}", "id": f"trace {i}"}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))


def by_hand(model, old, new, split):
    """Return the score of each new trace from the states that each model forward gives."""
    total: dict[str, float] = {}
    options: dict[str, Any] = {"reducer": "step_deltas", "span": "<t>,</t>"}
    parts = list(read(str(model), old, **options)), list(read(str(model), new, **options))
    keep = torch.cat([~split.is_held(b.split_draw) for b in parts[0]])
    failed = torch.cat([b.label for b in parts[0]])[keep] == 1
    for key in parts[0][0].rows:
        x = torch.cat([b.rows[key] for b in parts[0]])[keep].double()
        ends = x[~failed].mean(0), x[failed].mean(0)
        for batch in parts[1]:
            for name, row in zip(batch.ids, batch.rows[key].double(), strict=True):
                gap = float((row - ends[0]).norm() - (row - ends[1]).norm())
                total[name] = total.get(name, 0.0) + gap / len(batch.rows)
    return total


@pytest.mark.slow
@pytest.mark.truth("centroids and distances of the rows of the stream, by hand")
def test_traces_of_a_model_from_the_command_line(gpt2, tmp_path):
    old, new, probe = (tmp_path / name for name in ("old.jsonl", "new.jsonl", "clue.sonde"))
    write(old, 300, 0)
    write(new, 40, 1)
    ran = run_words("fit", "clue", gpt2, old, "-o", probe, *SPAN)
    assert ran.code == 0, ran.err
    fitted = Fitted.load(probe)
    assert {s["reducer"] for s in fitted.header["sites"]} == {"step_deltas"}
    assert len(fitted.tasks[0].keys) == 2
    table = tmp_path / "scores.csv"
    assert run_words("score", probe, gpt2, new, "-o", table, *SPAN).code == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    got = {r["id"]: float(r["score"]) for r in rows}
    want = by_hand(gpt2, old, new, fitted.split)
    assert got == pytest.approx(want, rel=1e-3, abs=1e-5)
    assert {r["site"] for r in rows} == {" & ".join(fitted.tasks[0].keys)}
    again = tmp_path / "again.csv"  # a span is kept with the probe
    assert run_words("score", probe, gpt2, new, "-o", again).code == 0
    assert again.read_text() == table.read_text()
    assert "select a part of the text" in run_words("fit", "clue", gpt2, old).error()
