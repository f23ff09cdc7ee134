"""Data in shards: a fit that was stopped goes on at its row, with the bytes of a list."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import sonde
from models import mlp
from run_case import Stopping
from sonde.data import hub_stream
from sonde.detect import Mahalanobis
from sonde.measure import Spectrum
from sonde.run.fitting.fit import fit
from sonde.run.passes.driver import Interrupted

N, SHARD, UNIT = 400, 50, 50
X = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
ASKED: list[int] = []


def generated(shards: list[int]) -> Any:
    for start in shards:
        for i in range(start, start + SHARD):
            ASKED.append(i)
            yield {"x": X[i].tolist()}


def streamed(folder: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    starts = {"shards": list(range(0, N, SHARD))}
    return datasets.IterableDataset.from_generator(generated, gen_kwargs=starts)


def tars(folder: Path) -> Path:
    for start in range(0, N, SHARD):
        with tarfile.open(folder / f"part-{start:03d}.tar", "w") as tar:
            for i in range(start, start + SHARD):
                file = io.BytesIO()
                np.save(file, X[i])
                info = tarfile.TarInfo(f"{i:06d}.npy")
                info.size = len(file.getvalue())
                tar.addfile(info, io.BytesIO(file.getvalue()))
    return folder


def tables(folder: Path) -> Path:
    for start in range(0, N, SHARD):
        rows = pa.table({"x": X[start : start + SHARD].tolist()})
        parquet.write_table(rows, folder / f"part-{start:03d}.parquet")
    return folder


@pytest.mark.slow
@pytest.mark.truth("one fit of the same rows as a list")
@pytest.mark.parametrize("kind", [streamed, tars, tables])
def test_a_stopped_fit_goes_on_at_its_row(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(hub_stream, "MARK_ROWS", 16)
    (tmp_path / "data").mkdir()
    data, model = kind(tmp_path / "data"), mlp()
    options: dict[str, Any] = {"unit_size": UNIT, "progress": False, "calibrate": 0}
    options["directory"] = tmp_path / "a.run"
    instruments = [Mahalanobis(), Spectrum()]
    with pytest.raises(Interrupted):
        fit(instruments, Stopping(sonde.read(model, data), 5), **options)
    resumed = Stopping(sonde.read(model, data))
    ASKED.clear()
    fitted = fit(instruments, resumed, **options)
    assert min(start for start, _ in resumed.asked) == 5 * UNIT
    # first rows are checked; a generator starts its shard again
    assert not [i for i in ASKED if UNIT <= i < 5 * UNIT - SHARD]
    fitted.save(tmp_path / "a.sonde")
    rows = sonde.read(model, [{"x": row} for row in X])
    whole = fit(instruments, rows, **(options | {"directory": None}))
    whole.save(tmp_path / "b.sonde")
    assert (tmp_path / "a.sonde").read_bytes() == (tmp_path / "b.sonde").read_bytes()


@pytest.mark.slow
@pytest.mark.truth("the scores of the same rows as a list")
def test_a_stream_is_scored_by_a_worker(tmp_path):
    model = mlp()
    fitted = fit(Mahalanobis(), sonde.read(model, [{"x": row} for row in X]), progress=False)
    whole = sonde.score(fitted, model, [{"x": row} for row in X], progress=False)
    scored = sonde.score(fitted, model, streamed(tmp_path), workers=1, progress=False)
    assert scored["p"].equals(whole["p"])
