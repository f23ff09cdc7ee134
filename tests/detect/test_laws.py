"""What every detector keeps to, beyond the laws of its statistics."""

import math

import numpy as np
import pytest
import torch

from sonde.core.calibration import Calibration
from sonde.core.errors import InputError
from sonde.core.instrument import score_needs
from sonde.detect import (
    ASH,
    COSTARR,
    DICE,
    FDBD,
    GEN,
    KNN,
    MSP,
    NAC,
    ODIN,
    SCALE,
    SHE,
    DictLookup,
    Energy,
    Entropy,
    GradNorm,
    KLMatching,
    Mahalanobis,
    MaxLogit,
    NNGuide,
    PatchCore,
    ReAct,
    RelativeMahalanobis,
    ViM,
)
from sonde.stats import Calibrated

PRUNES = ASH(variant="p")  # what it keeps of a row with large entries is large evidence

DETECTORS = [
    KNN(k=5),
    NAC(),
    NAC(alpha=0.2),
    Energy(),
    Entropy(),
    GEN(),
    GradNorm(),
    KLMatching(),
    MaxLogit(),
    MSP(),
    ODIN(temperature=10.0),
    SHE(),
    Mahalanobis(),
    Mahalanobis(classes=False),
    Mahalanobis(scatter="diag"),
    RelativeMahalanobis(),
    ViM(),
    ViM(alpha="paper"),
    ReAct(),
    ASH(),
    ASH(variant="b"),
    PRUNES,
    SCALE(),
    DICE(share=0.3),
    COSTARR(),
    COSTARR(logit="minmax"),
    COSTARR(logit="zscore"),
    FDBD(),
    NNGuide(k=5),
    DictLookup(m=64),
    PatchCore(m=64, b=1),
    PatchCore(m=1024),
]

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


def _fit(detector, columns, label):
    rest = {k: v for k, v in columns.items() if k != "x"}
    return detector.fit(columns["x"], label, head=(WEIGHT, None), **rest)


def _score(scorer, detector, columns):
    return scorer.score(*[columns[c] for c in score_needs(detector)])


@pytest.mark.slow
@pytest.mark.parametrize("detector", [d for d in DETECTORS if d is not PRUNES], ids=repr)
def test_far_rows_score_above_usual_ones(detector):
    columns, label = _columns(0)
    held, _ = _columns(1)
    scorer = _fit(detector, columns, label)
    usual = _score(scorer, detector, held)
    far = {"x": torch.tensor([[-8.0, 8.0] * 3]).repeat(4, 1), "logits": torch.zeros(4, 2)}
    far["perturbed_logits"] = far["logits"]
    far["grad"] = torch.full((4, 6), 2.0)
    assert float(_score(scorer, detector, far).min()) > float(usual.quantile(0.99))


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
def test_a_score_does_not_depend_on_the_batch(detector):
    columns, label = _columns(2, dtype=torch.float64)
    scorer = _fit(detector, columns, label)
    whole = _score(scorer, detector, columns)
    singles = [{k: v[i : i + 1] for k, v in columns.items()} for i in range(9)]
    one = [_score(scorer, detector, single) for single in singles]
    torch.testing.assert_close(torch.cat(one), whole[:9], rtol=1e-9, atol=1e-9)
    perm = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    mixed = _score(scorer, detector, {k: v[perm] for k, v in columns.items()})
    torch.testing.assert_close(mixed, whole[perm], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_score_infinity(detector, bad):
    columns, label = _columns(3)
    scorer = _fit(detector, columns, label)
    want = _score(scorer, detector, columns)
    broken = {k: v.clone() for k, v in columns.items()}
    for v in broken.values():
        v[7, 0] = bad
    got = _score(scorer, detector, broken)
    assert float(got[7]) == math.inf
    keep = torch.arange(300) != 7
    torch.testing.assert_close(got[keep], want[keep], rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
def test_order_of_rows_does_not_matter(detector):
    columns, label = _columns(5, n=700, dtype=torch.float64)
    perm = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    a = _fit(detector, columns, label)
    b = _fit(detector, {k: v[perm] for k, v in columns.items()}, label[perm])
    torch.testing.assert_close(_score(a, detector, columns), _score(b, detector, columns))


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
@pytest.mark.parametrize(
    "case", ["constant unit", "duplicated unit", "few rows", "one class", "half", "all equal"]
)
def test_hard_rows_give_finite_scores(detector, case):
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
    if case in ("one class", "all equal") and isinstance(detector, SHE):
        with pytest.raises(InputError, match="got none for 1 of 2 classes"):
            _fit(detector, columns, label)
        return
    if case == "one class" and isinstance(detector, RelativeMahalanobis):
        with pytest.raises(InputError, match="at least two classes, got 1"):
            _fit(detector, columns, label)
        return
    scores = _score(_fit(detector, columns, label), detector, columns)
    assert bool(torch.isfinite(scores).all())


@pytest.mark.truth("the promise of split-conformal calibration, by simulation")
@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
def test_false_alarms_stay_below_the_promise(detector):
    columns, label = _columns(7, n=200)
    scorer = _fit(detector, columns, label)
    rates = []
    for seed in range(60):
        fresh, _ = _columns(100 + seed, n=300)
        scores = _score(scorer, detector, fresh).double()
        p = Calibration.from_scores(scores[:200]).p_value(scores[200:])
        rates.append(float((p <= 0.1).double().mean()))
    assert np.mean(rates) <= 0.1 + 3 * np.std(rates) / len(rates) ** 0.5


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
def test_calibrated_in_the_same_pass_says_which_columns_it_scores(detector):
    columns, label = _columns(8)
    scorer = _fit(Calibrated(detector), columns, label)
    torch.testing.assert_close(
        _score(scorer, detector, columns), _score(_fit(detector, columns, label), detector, columns)
    )
