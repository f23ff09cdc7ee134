"""One folder of small files for all commands, and a way to run them in this process."""

import json
from pathlib import Path

import numpy as np
import pytest

from cli_case import run_words


@pytest.fixture
def run():
    return run_words


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Feature arrays: two sites, labels, a second set that lies elsewhere."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 240)
    a = rng.normal(size=(240, 5)).astype("f4") + label[:, None]
    b = (a @ rng.normal(size=(5, 4)) + rng.normal(size=(240, 4))).astype("f4")
    np.savez(folder / "rows.npz", a=a, b=b, label=label)
    np.savez(folder / "plain.npz", a=a[:120])
    np.savez(folder / "more.npz", a=a[120:])
    np.savez(folder / "other.npz", a=a[:90] + 6, b=b[:90] - 6, label=label[:90])
    np.savez(folder / "narrow.npz", a=a[:, :3], b=b)
    np.savez(folder / "one.npz", a=a[:1])
    np.savez(folder / "none.npz", a=a[:0])
    np.savez(folder / "one_class.npz", a=a, label=np.zeros(240, dtype=int))
    nan = np.full((60, 5), np.nan, dtype="f4")
    np.savez(folder / "nan.npz", a=nan)
    np.savez(folder / "half_nan.npz", a=a[:60], b=nan)
    np.save(folder / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert run_words("fit", "mahalanobis,knn(k=5)", "-", folder / "rows.npz",
                     "-o", folder / "probe.sonde").code == 0  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def report(place) -> dict:
    """A scan of arrays."""
    ran = run_words("scan", "-", place / "rows.npz", "-o", place / "report.json")
    assert ran.code == 0, ran.err
    return json.loads((place / "report.json").read_text())
