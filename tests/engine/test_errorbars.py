"""Standard errors by influence: closed forms, and the spread over simulated data sets."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.student import student

from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.result import Result
from sonde.engine.errorbars import group_error
from sonde.stats import HashSample, HashSampleState, Moments, MomentsState


@dataclass(frozen=True)
class FirstMean(Instrument):
    def reads(self) -> dict[str, Any]:
        return {"moments": Moments("diag")}

    def result(self, moments: MomentsState) -> Result:
        return Result(value=moments.mean[0], n=moments.n)


@dataclass(frozen=True)
class Participation(Instrument):
    def reads(self) -> dict[str, Any]:
        return {"moments": Moments()}

    def result(self, moments: MomentsState) -> Result:
        c = moments.covariance
        return Result(value=c.trace() ** 2 / c.square().sum(), n=moments.n)


@dataclass(frozen=True)
class Correlation(Instrument):
    """Of the first units of two sites."""

    span = "all"

    def reads(self) -> dict[str, Any]:
        return {"moments": Moments("diag")}

    def result(self, moments: tuple[MomentsState, ...]) -> Result:
        return Result(value=moments[0].mean[0] - moments[1].mean[0], n=moments[0].n)


@dataclass(frozen=True)
class Other(Instrument):
    kind: str

    def reads(self) -> dict[str, Any]:
        return {"s": HashSample(8) if self.kind == "no formula" else Moments("diag")}

    def result(self, s: Any) -> Result:
        value = {
            "no formula": 1.0,
            "vector": getattr(s, "mean", None),
            "constant": 3.0,
            "infinite": s.mean[0] / 0.0 if isinstance(s, MomentsState) else None,
            "own": 2.0,
        }[self.kind]
        assert isinstance(s, HashSampleState | MomentsState)
        return Result(value=value, se=0.5 if self.kind == "own" else None)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.truth("s / sqrt(n)")
def test_the_error_of_a_mean_where_all_rows_are_in_the_sample():
    x = torch.randn(1000, 2, generator=generator(0), dtype=torch.float64) * 3 + 7
    result = FirstMean().fit(x)
    assert result.value == pytest.approx(float(x[:, 0].mean()))
    assert isinstance(result.value, float)
    assert result.se == pytest.approx(float(x[:, 0].std()) / math.sqrt(1000), rel=1e-9)


@pytest.mark.truth("s / sqrt(number of groups) for copies of a row in one group")
def test_rows_of_a_group_count_as_one():
    x = torch.randn(300, 2, generator=generator(1), dtype=torch.float64)
    rows = x.repeat_interleave(5, dim=0)
    group = [i // 5 for i in range(1500)]
    result = FirstMean().fit(rows, group=group, ids=list(range(1500)))
    assert result.se == pytest.approx(float(x[:, 0].std()) / math.sqrt(300), rel=1e-9)
    naive = FirstMean().fit(rows, ids=list(range(1500)))
    assert naive.se < 0.5 * result.se


@pytest.mark.truth("s / sqrt(n)")
def test_a_sample_stands_for_all_rows():
    n = 4 * SAMPLE
    x = torch.randn(n, 1, generator=generator(2), dtype=torch.float64)
    result = FirstMean().fit(x)
    assert result.se == pytest.approx(float(x.std()) / math.sqrt(n), rel=0.06)
    assert result.se != pytest.approx(float(x.std()) / math.sqrt(n), rel=1e-9)


@pytest.mark.truth("variance of the difference of two correlated means")
def test_effects_at_several_sites_add_up_row_by_row():
    g = generator(3)
    common = torch.randn(800, 1, generator=g, dtype=torch.float64)
    a, b = (common + 0.3 * torch.randn(800, 1, generator=g, dtype=torch.float64) for _ in "ab")
    result = Correlation().fit({"a": a, "b": b})
    assert result.se == pytest.approx(float((a - b).std()) / math.sqrt(800), rel=1e-9)


def simulated_rows(n: int, seed: int) -> torch.Tensor:
    spectrum = 1.0 / torch.arange(1, 33, dtype=torch.float64).sqrt()
    return torch.randn(n, 32, generator=generator(seed), dtype=torch.float64) * spectrum


@pytest.mark.slow
@pytest.mark.truth("spread of the value over 150 simulated data sets")
def test_the_error_of_the_participation_ratio():
    values = []
    for seed in range(150):
        x = simulated_rows(8000, seed)
        c = torch.cov(x.T, correction=0)
        values.append(float(c.trace() ** 2 / c.square().sum()))
    spread = float(torch.tensor(values).std())
    errors = [Participation().fit(simulated_rows(8000, 1000 + i)).se for i in range(3)]
    assert sum(errors) / 3 == pytest.approx(spread, rel=0.15)


@pytest.mark.slow
@pytest.mark.truth("spread of the value over 200 simulated sets of documents")
def test_the_error_of_the_participation_ratio_of_documents():
    def documents(seed: int) -> torch.Tensor:
        topic = simulated_rows(200, seed).repeat_interleave(8, dim=0)
        return topic + 0.7 * simulated_rows(1600, seed + 10_000)

    values = []
    for seed in range(200):
        c = torch.cov(documents(seed).T, correction=0)
        values.append(float(c.trace() ** 2 / c.square().sum()))
    spread = float(torch.tensor(values).std())
    group = [i // 8 for i in range(1600)]
    errors = [Participation().fit(documents(500 + i), group=group).se for i in range(4)]
    assert sum(errors) / 4 == pytest.approx(spread, rel=0.2)
    naive = Participation().fit(documents(500)).se
    assert naive < 0.7 * spread


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no formula", "no influence formula for HashSample"),
        ("vector", "not a differentiable function"),
        ("constant", "not a differentiable function"),
        ("infinite", "not finite"),
    ],
)
def test_where_there_is_no_valid_error_the_reason_is_given(kind, reason):
    result = Other(kind).fit(torch.randn(20, 2))
    assert result.se is None
    assert reason in result.conventions["se"]


def test_rows_of_one_group_have_no_error():
    result = Participation().fit(torch.randn(20, 2), group=[0] * 20)
    assert result.se is None
    assert "one group" in result.conventions["se"]


def test_an_error_of_the_instruments_own_is_kept():
    result = Other("own").fit(torch.randn(20, 2))
    assert result.se == 0.5
    assert "se" not in result.conventions


def test_results_carry_no_graph():
    result = Participation().fit(torch.randn(50, 3))
    assert not any(torch.is_tensor(v) and v.requires_grad for v in vars(result).values())


@pytest.mark.truth("the formula by a loop over groups")
def test_group_error():
    effect = torch.randn(40, generator=generator(9))
    group = torch.arange(40) % 7
    centred = effect.double() - effect.double().mean()
    sums = torch.stack([centred[group == g].sum() for g in range(7)])
    sizes = torch.tensor([6, 6, 6, 6, 6, 5, 5])
    squares = sum(float(s) ** 2 / (1 - n / 40) for s, n in zip(sums, sizes.tolist(), strict=True))
    kish = 40**2 / sum(n**2 for n in sizes.tolist())
    want = math.sqrt(squares * 70 / 7) * student(kish)
    assert group_error(effect, group, 70) == pytest.approx(want)
    assert math.isnan(group_error(effect, torch.zeros(40, dtype=torch.int64), 70))
    assert math.isnan(group_error(effect[:0], torch.zeros(0, dtype=torch.int64), 0))


@pytest.mark.truth("spread over 400 data sets of the mean of all rows")
@pytest.mark.parametrize(("together", "rel"), [(1.0, 0.1), (0.2, 0.1), (0.0, 0.3)])
def test_group_error_of_a_sample_of_rows(together: float, rel: float) -> None:
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(100).repeat_interleave(40)
    means, squares = [], []
    for _ in range(400):
        x = math.sqrt(together) * torch.randn(100, dtype=torch.float64, generator=generator)[group]
        x += math.sqrt(1 - together) * torch.randn(4000, dtype=x.dtype, generator=generator)
        kept = torch.randperm(4000, generator=generator)[:500]
        means.append(float(x.mean()))
        squares.append(group_error(x[kept] / 4000, group[kept], 100, n_rows=4000) ** 2)
    truth = float(torch.tensor(means).std())
    assert math.sqrt(sum(squares) / 400) == pytest.approx(truth, rel=rel)


def test_group_error_of_every_row_is_that_of_whole_groups() -> None:
    effect = torch.randn(40, generator=torch.Generator().manual_seed(1))
    group = torch.arange(40) // 4
    assert group_error(effect, group, 10, n_rows=40) == group_error(effect, group, 10)
