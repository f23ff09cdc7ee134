"""Every benchmark runs at toy size and prints its rows; no time is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.cka_runner import made, truth
from benchmarks.detect import transcribed_fit, transcribed_scores
from benchmarks.protocol import ratios, spread_of
from benchmarks.rows import Row, as_json, not_measured, table
from benchmarks.scale_arms import lines_of, plain_model, sonde_disk, to_disk
from benchmarks.scale_runner import left

ROOT = Path(__file__).parent.parent.parent
NAMES = {
    "import": 3,
    "tap": 3,
    "tap-memory": 2,
    "stop": 3,
    "scan-small": 1,
    "nac": 1,
    "detect": 1,
    "sample": 3,
    "soak": 3,
    "guard": 8,
    "serve": 14,
    "serve-promise": 12,
    "generate": 4,
    "train": 1,
    "dictionary": 6,
    "attribute": 6,
    "calibrate": 1,
    "cka": 2,
    "measure": 6,
    "scan": 2,
    "scan-memory": 1,
    "scan-cost": 3,
    "compress": 10,
    "cache": 10,
    "erase": 1,
    "facts": 3,
    "merge-scale": 6,
    "scale": 6,
}


@pytest.mark.slow
def test_every_benchmark_runs_and_prints_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    # The one of Ray starts eight clusters, which takes minutes; tests/run tries what it runs.
    only = [word for name in NAMES for word in ("--only", name)]
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        *only,
        "--tiny",
        "--offline",
        "--rounds",
        "1",
        "--json",
        str(file),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["tiny"]
    assert found["versions"]["torch"] == torch.__version__
    for name, least in NAMES.items():
        rows = [row for row in found["rows"] if row["name"] == name]
        assert len(rows) >= least, (name, rows)
        for row in rows:
            assert row["what"] in done.stdout
            # Other libraries may not be installed here; everything else must give a figure.
            assert row["value"] is not None or "--offline" in row["note"], row


def test_a_row_over_its_budget_and_spread_does_not_pass() -> None:
    assert Row("a", "a", 1.04, budget=1.0, spread=0.05).is_within
    assert not Row("a", "a", 1.06, budget=1.0, spread=0.05).is_within
    assert Row("a", "a", 99.0).is_within
    missing = not_measured("a", "what", "why")
    assert not missing.is_within
    assert as_json([missing], True, {})["rows"][0]["value"] is None
    assert "not measured" in table([missing])


@pytest.mark.truth("worked by hand")
def test_ratio_is_the_median_of_rounds() -> None:
    ratio = ratios([2.0, 9.0, 3.0], [1.0, 3.0, 1.0], [1.1, 3.0, 0.9])
    assert ratio.median == 3.0
    assert (ratio.low, ratio.high, ratio.rounds) == (0.9, 1.1, 3)
    assert ratio.spread == pytest.approx(0.08)
    assert spread_of([1.0]) == 0.0


@pytest.mark.truth("the paper's worked grid: 10 thresholds, two units, four rows")
def test_transcribed_formula_gives_the_worked_example() -> None:
    x = torch.tensor([[-1.0, 0.2], [-0.5, 0.2], [0.0, 0.3], [0.5, 0.9]])
    coverage = transcribed_fit(x, torch.ones_like(x), 1.0, 10, 0.5)
    fresh = torch.tensor([[0.0, 0.2], [3.0, -3.0], [-0.5, 0.9]])
    scores = transcribed_scores(fresh, torch.ones_like(fresh), coverage, 1.0, 10)
    assert scores.tolist() == [0.25, 1.0, 0.5]


@pytest.mark.truth("identity")
def test_truth_of_a_layer_with_itself_is_one() -> None:
    first, second = made(2, 8, 32)
    assert truth(first, 3.0 * first + 1.0) == pytest.approx(1.0)
    assert truth(first, second) < 1.0


@pytest.mark.truth("counted by hand")
def test_lines_of_user_code_are_those_of_the_body() -> None:
    assert [lines_of(f) for f in (to_disk, plain_model, sonde_disk)] == [1, 2, 4]


@pytest.mark.truth("rows made here")
def test_what_is_left_counts_rows_and_how_far_they_lie(tmp_path: Path) -> None:
    rows = {0: torch.zeros(6, 3), 1: torch.ones(6, 3)}
    torch.save(rows, tmp_path / "whole")
    torch.save({0: rows[0][:4], 1: rows[1][:4] + 0.5}, tmp_path / "part")
    whole = str(tmp_path / "whole")
    found = left("plain hooks", str(tmp_path / "part"), [0, 1], whole)
    assert (found["rows"], found["apart"]) == (4, 0.5)
    assert left("plain hooks", str(tmp_path / "none"), [0, 1], whole)["rows"] == 0
