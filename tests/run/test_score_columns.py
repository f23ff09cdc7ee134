"""Scores as columns of batches, and Ray Data in both directions."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sonde
from sonde.core.errors import InputError
from sonde.detect import KNN
from sonde.run.scoring.by_input import by_input
from sonde.run.scoring.score_columns import ScoreColumns

ROOT = Path(__file__).parents[2]
TEXTS = [f"def f{i}(x):\n    return x + {i * i}\n" * (1 + i % 3) for i in range(40)]


@pytest.fixture(scope="module")
def fitted():
    model = sonde.load("sonde:stdlib")
    stream = sonde.read(model, {"text": TEXTS}, sites="model.layers.1")
    return model, sonde.fit(KNN(k=2), stream, progress=False)


@pytest.mark.slow
@pytest.mark.truth("sonde.score on all inputs at once")
@pytest.mark.parametrize("size", [1, 7, 40])
def test_columns_are_those_of_all_inputs_however_batches_are_cut(fitted, size):
    model, bundle = fitted
    scores = ScoreColumns(bundle, model, alpha=0.3)
    parts = [
        scores(
            {"text": np.array(TEXTS[i : i + size], dtype=object), "n": np.arange(40)[i : i + size]}
        )
        for i in range(0, 40, size)
    ]
    table = sonde.score(bundle, model, {"text": TEXTS}, batch_invariant=True, progress=False)
    lines = by_input(table, bundle, alpha=0.3).table
    assert np.concatenate([part["p"] for part in parts]).tolist() == lines["p"].to_pylist()
    assert np.concatenate([part["alarm"] for part in parts]).tolist() == lines["alarm"].to_pylist()
    assert [n for part in parts for n in part["n"]] == list(range(40))
    assert parts[0]["loudest"][0] == f"knn at {bundle.header['sites'][0]['text']}"
    with pytest.raises(InputError, match="expected no column 'p'"):
        scores({"text": TEXTS[:1], "p": [1.0]})


def in_ray(code: str, place: Path) -> str:
    pytest.importorskip("ray.data")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env={
            **os.environ,
            "RAY_ADDRESS": "local",  # not the cluster of a test that runs beside this one
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
            "PYTHONWARNINGS": "ignore",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_pipeline_of_the_page_and_both_directions_run(tmp_path):
    page = (ROOT / "docs" / "howto" / "cluster.md").read_text()
    code = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len(code) == 1
    assert len(code[0].splitlines()) <= 20
    out = in_ray(code[0] + ROWS, tmp_path).splitlines()
    assert out[-2:] == ["60 True", "True"]


ROWS = """
import numpy as np, ray, torch
from sonde.core.stream import Stream
from sonde.store import Store, write_store
x = torch.randn(100, 3)
store = Store(write_store(Stream.of(x), "a", unit_size=20))
batch = store.to_ray(batch_size=16).take_batch(100)
order = np.argsort(batch["row"])
assert batch["row"][order].tolist() == list(range(100))
assert np.array_equal(batch["x"][order], x.numpy())
import sonde
texts = [f"x = {i}" * (1 + i % 3) for i in range(30)]
items = ray.data.from_items([{"text": text} for text in texts], override_num_blocks=4)
model = sonde.load("sonde:stdlib")
one, other = (sonde.gather(sonde.read(model, data, sites="model.layers.1"))
              for data in (items, {"text": texts}))
assert len(one.rows) == 1
print(all(torch.equal(one.rows[key], other.rows[key]) for key in one.rows))
"""
