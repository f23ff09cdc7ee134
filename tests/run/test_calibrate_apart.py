"""Detectors calibrated by workers: the bytes of one process."""

import signal
from pathlib import Path
from typing import Any

import pytest

import sonde
from sonde.detect import KNN, Mahalanobis
from sonde.run.fitting.fit import fit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL"),
]
QUIET: dict[str, Any] = {"progress": False, "threads": 1}


@pytest.mark.truth("the bundle of one process")
def test_workers_calibrate_as_one_process_does(tmp_path: Path):
    model = sonde.load("sonde:stdlib")
    how: dict[str, Any] = {
        "sites": "model.layers.5",
        "reducer": "mean",
        "max_length": 32,
        "batch_size": 16,
    }
    stream = sonde.read(model, "sonde:stdlib/train", limit=200, logits=True, **how)
    fitted = fit([Mahalanobis(), KNN(k=3)], stream, **QUIET)
    for workers in (0, 2):
        held = sonde.read(model, "sonde:stdlib/test", logits=True, **how)
        assert held.grouped
        found = sonde.calibrate(fitted, held, by="predicted", workers=workers, **QUIET)
        found.save(tmp_path / str(workers))
    assert (tmp_path / "2").read_bytes() == (tmp_path / "0").read_bytes()
