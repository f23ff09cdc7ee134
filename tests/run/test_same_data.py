"""The same data are known again, however they are cut into batches."""

from typing import Any

import pytest
import torch

from models import mlp
from sonde.core.errors import InputError, StateError
from sonde.detect import Hotelling, Mahalanobis
from sonde.run.comparing.drift import drift
from sonde.run.fitting.fit import fit
from sonde.run.fitting.header import data_fingerprint
from sonde.run.fitting.merge import merge
from sonde.run.reading.read import read
from sonde.run.scoring.calibrate import calibrate
from sonde.store import Store, append_store, write_store

QUIET: dict[str, Any] = {"progress": False}
OTHERWISE = [{"batch_size": 8}, {"batch_size": 16, "skip_bad": True}]


@pytest.fixture(scope="module")
def model():
    return mlp()


def stream(model, seed=0, **options):
    items = list(torch.randn(60, 8, generator=torch.Generator().manual_seed(seed)))
    return read(model, items, sites="0", **{"batch_size": 16, **options})


@pytest.mark.parametrize("options", OTHERWISE)
def test_rows_of_the_same_data_never_count_twice(model, options):
    again, other = stream(model, **options), stream(model, 1)
    fitted = fit(Mahalanobis(), stream(model), calibrate=0, **QUIET)
    with pytest.raises(StateError, match="seen the same data"):
        merge(fitted, fit(Mahalanobis(), again, calibrate=0, **QUIET))
    with pytest.raises(InputError, match="not fitted on"):
        calibrate(fitted, again, **QUIET)
    merged = merge(fitted, fit(Mahalanobis(), other, calibrate=0, **QUIET))
    assert merged.header["data"]["n_examples"] == 120
    assert calibrate(fitted, other, **QUIET).result("mahalanobis").calibration.n == 60


@pytest.mark.parametrize("options", OTHERWISE)
def test_the_same_data_are_appended_once(model, options, tmp_path):
    write_store(stream(model), tmp_path / "acts")
    append_store(stream(model, **options), tmp_path / "acts")
    assert len(Store(tmp_path / "acts")) == 60
    append_store(stream(model, 1), tmp_path / "acts")
    append_store(stream(model, 1, **options), tmp_path / "acts")
    assert len(Store(tmp_path / "acts")) == 120


def test_two_readings_of_the_same_data_are_the_same_rows(model):
    sides = [fit(Hotelling(), stream(model, batch_size=b), **QUIET) for b in (16, 8)]
    assert drift(sides[0], sides[1]).rows == "same"
    assert data_fingerprint(stream(model)) != data_fingerprint(stream(model, 1))
