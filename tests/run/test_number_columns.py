"""Columns of numbers are matched by name with those of the fit, wherever they stand in a table."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from sonde.core.errors import InputError, StateError, StoreError
from sonde.detect import Mahalanobis
from sonde.run.comparing.drift import drift
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.read import read
from sonde.run.scoring.score import score
from sonde.store import Store, append_store, write_store

QUIET: dict[str, Any] = {"progress": False}


def table(path, rows, columns, **more):
    """Write the numbers of columns a, b, c in this order of columns, and what more there is."""
    lines = [[*(row["abc".index(c)] for c in columns), *more.values()] for row in rows.tolist()]
    header = ",".join([*columns, *more])
    path.write_text("\n".join([header, *(",".join(map(str, line)) for line in lines)]) + "\n")
    return path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh()).eval()


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    place = tmp_path_factory.mktemp("tables")
    rows = np.random.default_rng(0).normal(size=(60, 3)) * [1, 5, 25]
    orders = {name: table(place / f"{name}.csv", rows, name) for name in ("abc", "cab", "ab")}
    table(place / "more.csv", rows, "bac", place="here", quality=0.5)
    return {**orders, "more": place / "more.csv"}


@pytest.fixture(scope="module")
def probe(model, tables, tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "p.sonde"
    fit(Mahalanobis(), read(model, tables["abc"], sites="0"), **QUIET).save(path)
    return Fitted.load(path)


@pytest.mark.truth("the same numbers in the order of the fit")
@pytest.mark.parametrize("name", ["cab", "more"])
def test_columns_are_matched_by_name(model, tables, probe, name):
    want = score(probe, model, tables["abc"], **QUIET)
    assert score(probe, model, tables[name], **QUIET).equals(want)
    with pytest.raises(InputError, match="hold the same examples"):
        sonde.scan(model, tables["abc"], versus=tables[name], sites="0", **QUIET)


def test_a_column_that_is_missing_is_named(model, tables, probe):
    with pytest.raises(InputError, match=r"columns of numbers a, b, c, got no c, only a, b"):
        score(probe, model, tables["ab"], **QUIET)


def test_rows_in_another_order_are_not_joined(model, tables, probe, tmp_path):
    other = fit(Mahalanobis(), read(model, tables["cab"], sites="0"), **QUIET)
    for joined in (probe.merge, lambda second: drift(probe, second)):
        with pytest.raises(StateError, match=r"a, b, c, as the state was fitted, got c, a, b"):
            joined(other)
    write_store(read(model, tables["cab"], sites="0"), tmp_path / "acts")
    with pytest.raises(StateError, match="number_columns"):
        score(probe, Store(tmp_path / "acts"), **QUIET)
    with pytest.raises(StoreError, match="--number-columns c,a,b"):
        append_store(read(model, tables["abc"], sites="0"), tmp_path / "acts")
