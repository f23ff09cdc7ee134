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


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".safetensors", ".lance"])
def test_an_export_is_verified(run, acts, tmp_path, suffix):
    if suffix == ".lance":
        pytest.importorskip("lance")
    path = tmp_path / f"a{suffix}"
    assert run("export", acts, "-o", path).code == 0
    ran = run("verify", path)
    assert (ran.code, "sound" in ran.err) == (0, True)
    victim = next(path.glob("data/*")) if path.is_dir() else path
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    ran = run("verify", path)
    assert ran.code == 1
    assert "its bytes are not those that were written" in ran.out
    assert "1 fault" in ran.err


def test_arrays_that_changed_are_not_fitted(run, acts, tmp_path):
    path = tmp_path / "a.safetensors"
    assert run("export", acts, "-o", path).code == 0
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert "is damaged" in run("fit", "norms", "-", path, "-o", tmp_path / "b.sonde").error()
    assert not (tmp_path / "b.sonde").exists()
