"""What scoring is said to take before it starts, against what it holds."""

from typing import Any

import pytest
import torch

import sonde
from run_case import stream
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.detect import KNN, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.needs import needs_of_scoring
from sonde.run.scoring.score import score

QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(scope="module")
def fitted():
    return fit([Mahalanobis(), KNN(k=5, m=100)], stream(400), **QUIET)


@pytest.mark.parametrize("explain", [0, 3])
@pytest.mark.truth("the bytes that Arrow counts")
def test_the_table_takes_what_is_said(fitted, explain):
    ids = [f"a longer name of row {i:06d}" for i in range(5000)]
    rows = Stream.of(torch.randn(5000, 4), ids=ids)
    needed = needs_of_scoring(fitted, rows, explain=explain)
    table = score(fitted, rows, explain=explain, **QUIET)
    assert needed.n_lines == table.num_rows == 10_000
    twice = 2 * table.nbytes  # it is held a second time while its rows are put in order
    assert 0.5 * needed.table_bytes < twice < 1.5 * needed.table_bytes


@pytest.mark.truth("the lines of the table")
def test_rows_and_examples_are_counted_apart():
    images = sonde.read("sonde:digits", "sonde:digits/test", limit=40, reducer="patches")
    found = fit(Mahalanobis(), images, reduction="max", **QUIET)
    for how in ("max", "rows"):
        lines = needs_of_scoring(found, images, reduction=how).n_lines
        assert lines == score(found, images, reduction=how, **QUIET).num_rows
    assert lines > 40 * len(images.schema)


@pytest.mark.truth("the tensors of the bundle")
def test_every_process_holds_the_detectors(fitted):
    alone, three = (needs_of_scoring(fitted, stream(50), workers=n) for n in (0, 2))
    assert alone.scorers_bytes == three.scorers_bytes >= 100 * 4 * 4
    assert three.total_bytes > 2.9 * alone.total_bytes - 2.9 * alone.table_bytes


def test_what_does_not_fit_is_refused(fitted):
    with pytest.raises(InputError, match=r"score: this needs about .* 800 lines .*1 MiB are"):
        score(fitted, stream(400), memory=2**20, **QUIET)
    with pytest.raises(InputError, match=r"calibrate: this needs about .*--memory"):
        calibrate(fitted, stream(300, seed=1), memory=2**20, **QUIET)
    with pytest.raises(InputError, match="--memory: expected more than 0"):
        score(fitted, stream(400), memory=-1, **QUIET)
    assert score(fitted, stream(400), memory=2**30, **QUIET).num_rows == 800
