"""What every detector keeps to, beyond the laws of its statistics."""

import functools
import math
import re

import numpy as np
import pytest
import torch

from contract.statistics import exported_instruments
from sonde.core.calibration import Calibration
from sonde.core.errors import InputError
from sonde.core.instrument import Detector, score_needs
from sonde.core.statistic import Learner
from sonde.stats import Calibrated
from sonde.testing.instrument_laws import lacking

BROUGHT = {
    "x",
    "grad",
    "logits",
    "perturbed_logits",
    "label",
    "head",
    "group",
    "draw",
    "group_draw",
}


def _is_tried(instrument):
    """Whether it scores single rows by the columns below, higher where they are unusual."""
    if lacking(instrument) or instrument.reading():
        return False
    needs = {n for read in instrument.all_reads().values() for n in read.statistic.needs()}
    learns = any(isinstance(r.statistic, Learner) for r in instrument.all_reads().values())
    return instrument.span == "one" and not learns and {*needs, *score_needs(instrument)} <= BROUGHT


DETECTORS = [i for i in exported_instruments() if isinstance(i, Detector) and _is_tried(i)]
ONE_OF_EACH_NEEDS = list({score_needs(d): d for d in DETECTORS}.values())

WEIGHT = torch.tensor([[1.0] * 3 + [0.0] * 3, [0.0] * 3 + [1.0] * 3])


def _columns(seed, n=300, dim=6, dtype=torch.float32):
    """Two classes with a linear head: rows, their gradients and logits."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    centre = torch.tensor([[4.0] * 3 + [1.0] * 3, [1.0] * 3 + [4.0] * 3])
    x = centre[label] + 0.5 * torch.randn(n, dim, generator=rng)
    logits = x @ WEIGHT.T
    grad = (logits.softmax(1) - 0.5) @ WEIGHT
    columns = {"x": x, "grad": grad, "logits": logits, "perturbed_logits": 1.1 * logits}
    return {k: v.to(dtype) for k, v in columns.items()}, label


@functools.cache
def _fresh(seed):
    """Rows that all detectors score."""
    return _columns(100 + seed, n=300)


def _fit(detector, columns, label):
    rest = {k: v for k, v in columns.items() if k != "x"}
    return detector.fit(columns["x"], label, head=(WEIGHT, None), **rest)


def _score(scorer, detector, columns):
    return scorer.score(*[columns[c] for c in score_needs(detector)])


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
def test_a_broken_row_is_dropped_from_the_fit(detector):
    columns, label = _columns(4)
    broken = {k: torch.cat([v, torch.full_like(v[:1], math.nan)]) for k, v in columns.items()}
    got = _fit(detector, broken, [*label.tolist(), 0])
    want = _fit(detector, columns, label)
    assert got.n == want.n
    torch.testing.assert_close(
        _score(got, detector, columns), _score(want, detector, columns), rtol=1e-4, atol=1e-4
    )


def _hard(case):
    columns, label = _columns(6)
    if case == "constant unit":
        columns["x"][:, 2] = 3.0
    elif case == "duplicated unit":
        columns["x"][:, 2] = columns["x"][:, 1]
    elif case == "few rows":
        columns, label = {k: v[:4] for k, v in columns.items()}, label[:4]
    elif case == "one class":
        label = torch.zeros_like(label)
    elif case == "half":
        columns = {k: v.half() for k, v in columns.items()}
    else:
        columns = {k: v[:1].repeat(50, 1) for k, v in columns.items()}
        label = torch.arange(50) % 2
    return columns, label


SOLVABLE = ("constant unit", "duplicated unit", "half")
DEGENERATE = ("few rows", "one class", "all equal")


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
def test_hard_rows_give_finite_scores(detector):
    for case in SOLVABLE + DEGENERATE:
        columns, label = _hard(case)
        try:
            scorer = _fit(detector, columns, label)
        except InputError as error:
            if case not in DEGENERATE or not re.search("expected .*, got", str(error)):
                raise
            continue
        assert bool(torch.isfinite(_score(scorer, detector, columns)).all()), case


@pytest.mark.truth("the promise of split-conformal calibration, by simulation")
@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
def test_false_alarms_stay_below_the_promise(detector):
    columns, label = _columns(7, n=200)
    scorer = _fit(detector, columns, label)
    rates = []
    for seed in range(60):
        fresh, _ = _fresh(seed)
        scores = _score(scorer, detector, fresh).double()
        p = Calibration.from_scores(scores[:200]).p_value(scores[200:])
        rates.append(float((p <= 0.1).double().mean()))
    assert np.mean(rates) <= 0.1 + 3 * np.std(rates) / len(rates) ** 0.5


@pytest.mark.parametrize("detector", ONE_OF_EACH_NEEDS, ids=repr)
def test_calibrated_in_the_same_pass_says_which_columns_it_scores(detector):
    columns, label = _columns(8)
    scorer = _fit(Calibrated(detector), columns, label)
    torch.testing.assert_close(
        _score(scorer, detector, columns), _score(_fit(detector, columns, label), detector, columns)
    )
