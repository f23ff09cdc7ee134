"""``sonde export``: files of every kind, states read on the way, errors, nothing half written."""

from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from run_case import stream
from sonde.data import load, open_inputs
from sonde.store import write_store
from sonde.store.writing import StoreWriter


@pytest.fixture
def acts(tmp_path):
    columns = {"score": [i / 10 for i in range(120)]}
    return write_store(
        stream(120, label=[i % 2 for i in range(120)]), tmp_path / "acts", columns=columns
    )


@pytest.mark.slow
@pytest.mark.truth("pyarrow and numpy read the files")
def test_every_kind_of_file(run, acts, tmp_path):
    ran = run("export", acts, "-o", tmp_path / "a.parquet", "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["n_rows"] == 120
    assert "120 rows of 1 site" in ran.err
    found = parquet.read_table(tmp_path / "a.parquet")
    assert found["score"].to_pylist() == [i / 10 for i in range(120)]
    assert {"id", "x", "y", "neighbors"} <= set(found.column_names)
    words = ["--columns", "score", "--no-rows", "--neighbors", "0"]
    assert run("export", acts, "-o", tmp_path / "b.parquet", *words).code == 0
    less = set(found.column_names) - set(parquet.read_table(tmp_path / "b.parquet").column_names)
    assert {"neighbors", "x_2"} <= less
    for name in ("a.npz", "a.safetensors"):
        assert run("export", acts, "-o", tmp_path / name).code == 0
        probe = tmp_path / f"{name}.sonde"
        assert run("fit", "mahalanobis", "-", tmp_path / name, "-o", probe).code == 0
    states = np.load(tmp_path / "a.npz")["x"]
    assert states.shape == (120, 4)
    assert np.array_equal(np.stack(found["x_2"].to_numpy()), states)


def test_what_is_wrong_is_named(run, acts, tmp_path):
    assert "ends in .parquet" in run("export", acts, "-o", tmp_path / "a.csv").error()
    assert "no column 'scor'" in run(
        "export", acts, "-o", tmp_path / "a.parquet", "--columns", "scor"
    ).error()  # fmt: skip
    assert "no site 'y'" in run("export", acts, "-o", tmp_path / "a.npz", "--sites", "y").error()
    assert "STORE, or acts MODEL DATA" in run("export", "a", "b", "-o", tmp_path / "a.npz").error()
    assert (
        "expected DATA" in run("export", "acts", "sonde:digits", "-o", tmp_path / "a.npz").error()
    )
    assert "store.json" in run("export", tmp_path, "-o", tmp_path / "a.npz").error()
    assert "no folder" in run("export", acts, "-o", tmp_path / "none" / "a.npz").error()
    assert [p.name for p in tmp_path.iterdir()] == ["acts"]


ACTS = ("acts", "sonde:digits", "sonde:digits/test", "--sites", "blocks", "--reducer", "cls")
ACTS += ("--limit", 50, "--batch-size", 25)


@pytest.fixture(scope="module")
def hooked():
    """Return what hooks of our own see of the first token at each block, and the labels and ids."""
    model = load("sonde:digits")
    inputs = open_inputs(model, "sonde:digits/test", limit=50, batch_size=25)
    seen: dict[str, list[torch.Tensor]] = {f"vit.layers.{i}": [] for i in range(4)}
    labels, ids = [], []

    def keep(rows: list[torch.Tensor]) -> Any:
        return lambda _, __, out: rows.append(out[:, 0])

    hooks = [
        model.module.get_submodule(name).register_forward_hook(keep(rows))
        for name, rows in seen.items()
    ]
    for batch in inputs.batches(0, 50):
        with torch.no_grad():
            model.module(**batch.kwargs)
        labels, ids = [*labels, *batch.label.tolist()], [*ids, *batch.ids]
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}, labels, ids


@pytest.mark.slow
@pytest.mark.truth("hooks of our own on the same model")
def test_states_are_read_and_written(run, hooked, tmp_path):
    states, labels, ids = hooked
    for name in ("a.safetensors", "a.npz", "a.parquet", "a"):
        ran = run("export", *ACTS, "-o", tmp_path / name)
        assert ran.code == 0, ran.err
        assert ran.err.count("wrote") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"a", "a.npz", "a.parquet", "a.safetensors"}
    tensors, npz = load_file(tmp_path / "a.safetensors"), np.load(tmp_path / "a.npz")
    table = parquet.read_table(tmp_path / "a.parquet")
    for site, rows in states.items():
        column = next(n for n in table.column_names if site in n.replace("_", "."))
        truth = rows.numpy().tobytes()
        assert tensors[site].numpy().tobytes() == npz[site].tobytes() == truth
        assert np.load(tmp_path / "a" / f"{site}.npy", mmap_mode="r").tobytes() == truth
        assert np.array(table[column].to_pylist(), dtype=np.float32).tobytes() == truth
    assert npz["label"].tolist() == np.load(tmp_path / "a" / "label.npy").tolist() == labels
    assert table["id"].to_pylist() == npz["id"].tolist() == [str(i) for i in ids]


@pytest.mark.slow
def test_reading_that_was_interrupted_goes_on(run, tmp_path, monkeypatch):
    wrote, seen = StoreWriter.write, []

    def stop(self, ranges, tick=lambda _: None):
        wrote(self, ranges[:2], tick)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "write", stop)
        ran = run("export", *ACTS, "--unit-size", 10, "-o", tmp_path / "a.npz")
        assert ran.code == 130
        assert "the same command continues" in ran.err
    monkeypatch.setattr(StoreWriter, "write", lambda s, r, *a: seen.extend(r) or wrote(s, r, *a))
    assert run("export", *ACTS, "--unit-size", 10, "-o", tmp_path / "a.npz").code == 0
    assert run("export", *ACTS, "--unit-size", 10, "-o", tmp_path / "b.npz").code == 0
    one, other = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert all(one[name].tobytes() == other[name].tobytes() for name in other.files)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


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
    assert "its bytes differ from those that were written" in ran.out
    assert "1 fault" in ran.err


def test_arrays_that_changed_are_not_fitted(run, acts, tmp_path):
    path = tmp_path / "a.safetensors"
    assert run("export", acts, "-o", path).code == 0
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert "is damaged" in run("fit", "norms", "-", path, "-o", tmp_path / "b.sonde").error()
    assert not (tmp_path / "b.sonde").exists()
