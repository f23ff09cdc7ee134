"""``sonde export`` from the command line: files of every kind, errors, nothing half written."""

import numpy as np
import pytest
from pyarrow import parquet

from run_case import stream
from sonde.store import write_store


@pytest.fixture
def acts(tmp_path):
    columns = {"score": [i / 10 for i in range(120)]}
    return write_store(
        stream(120, label=[i % 2 for i in range(120)]), tmp_path / "acts", columns=columns
    )


@pytest.mark.truth("pyarrow and numpy read the files")
def test_every_kind_of_file(run, acts, tmp_path):
    ran = run("export", acts, "-o", tmp_path / "a.parquet", "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["n_rows"] == 120
    assert "120 rows of 1 site" in ran.err
    found = parquet.read_table(tmp_path / "a.parquet")
    assert found["score"].to_pylist() == [i / 10 for i in range(120)]
    assert {"id", "x", "y", "neighbors"} <= set(found.column_names)
    words = ["--columns", "score", "--rows", "--neighbors", "0"]
    assert run("export", acts, "-o", tmp_path / "b.parquet", *words).code == 0
    assert "neighbors" not in parquet.read_table(tmp_path / "b.parquet").column_names
    for name in ("a.npz", "a.safetensors"):
        assert run("export", acts, "-o", tmp_path / name).code == 0
        probe = tmp_path / f"{name}.sonde"
        assert run("fit", "mahalanobis", "-", tmp_path / name, "-o", probe).code == 0
    assert np.load(tmp_path / "a.npz")["x"].shape == (120, 4)


def test_what_is_wrong_is_named(run, acts, tmp_path):
    assert "ends in .parquet" in run("export", acts, "-o", tmp_path / "a.csv").error()
    assert "no column 'scor'" in run(
        "export", acts, "-o", tmp_path / "a.parquet", "--columns", "scor"
    ).error()  # fmt: skip
    assert "no site 'y'" in run("export", acts, "-o", tmp_path / "a.npz", "--sites", "y").error()
    assert "store.json" in run("export", tmp_path, "-o", tmp_path / "a.npz").error()
    assert "no folder" in run("export", acts, "-o", tmp_path / "none" / "a.npz").error()
    assert [p.name for p in tmp_path.iterdir()] == ["acts"]


def test_an_interrupt_leaves_nothing(run, acts, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sonde.store.exporting.tables._joined", stop)
    ran = run("export", acts, "-o", tmp_path / "a.parquet")
    assert ran.code == 130
    assert [p.name for p in tmp_path.iterdir()] == ["acts"]
