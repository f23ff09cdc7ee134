import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

from findings._evidence import digits, evidence_of, shuffled, states, versus_of
from sonde.core.calibration import Calibration
from sonde.findings._alarm import Alarm, fuse, surprise
from sonde.findings.snd052 import SND052
from sonde.findings.versus import alarms, scored, versus_section


@pytest.mark.slow
def test_noise_images_raise_alarms_and_another_half_does_not() -> None:
    x, order = digits()[0], shuffled(1797)
    a, b = x[order[:1200]], x[order[1200:]].clone()
    clean = versus_of(states(a)[0], states(b)[0])
    assert SND052().check(clean).state == "clear"
    generator = torch.Generator().manual_seed(0)
    b[:60] = torch.rand(60, 64, generator=generator)
    evidence = versus_of(states(a)[0], states(b)[0], other={"ids": [f"o{i}" for i in range(597)]})
    check = SND052().check(evidence)
    assert check.finding is not None
    assert check.finding.level == "warning"
    assert len(check.finding.sentence) <= 240
    assert check.finding.figure.value > 0.08
    section = versus_section(evidence)
    assert section is not None
    worst = [row["id"] for row in section["rows"]]
    assert len(set(worst) & {f"o{i}" for i in range(60)}) >= 45
    assert sum(section["scores"]["counts_other"]) == 597
    assert section["alarm"]["n"] == 597


def test_it_needs_other_and_enough_held_out_rows() -> None:
    x = digits()[0]
    assert SND052().check(evidence_of(x[:300])).state == "not_applicable"
    check = SND052().check(versus_of(x[:150], x[150:400]))
    assert check.state == "withheld"
    assert check.tables["needed"] == 99


def fused(seed: int, n_held: int, m: int, far: float = 0.0) -> Alarm:
    """Return alarms of two dependent scores, no different in OTHER unless ``far``."""
    rng = np.random.default_rng(seed)

    def scores(n: int, shift: float) -> dict[tuple[str, str], torch.Tensor]:
        base = rng.normal(size=n) + shift * (rng.uniform(size=n) < 0.05)
        return {
            ("a", "x"): torch.from_numpy(base + 0.3 * rng.normal(size=n)),
            ("b", "x"): torch.from_numpy(base + 0.3 * rng.normal(size=n)),
        }

    held, other = scores(n_held, 0.0), scores(m, far)
    alarm = fuse(held, torch.arange(n_held), other, torch.arange(m) + 10**6, 0.01)
    assert isinstance(alarm, Alarm)
    return alarm


@pytest.mark.slow
def test_the_beta_binomial_keeps_its_level_where_the_binomial_does_not() -> None:
    found = [fused(seed, 400, 2000) for seed in range(300)]
    small = sum(a.p < 0.01 for a in found)
    naive = sum(binom.sf(a.n_alarms - 1, a.n, 0.01) < 0.01 for a in found)
    assert small <= 9
    assert naive >= 3 * small + 20
    assert np.mean([a.rate for a in found]) == pytest.approx(0.01, rel=0.25)


def test_far_rows_are_found() -> None:
    assert sum(fused(seed, 1400, 1000, far=8.0).p < 0.001 for seed in range(20)) >= 19


@pytest.mark.truth("the mixture of binomials over a beta rate, by quadrature")
def test_p_is_the_tail_of_a_binomial_with_a_beta_rate() -> None:
    alarm = fused(0, 400, 500)
    rank, n = alarm.calibration.alarms_allowed(0.01), alarm.calibration.n
    grid = (np.arange(20_000) + 0.5) / 20_000
    rate = beta.ppf(grid, rank, n + 1 - rank)
    tail = binom.sf(alarm.n_alarms - 1, alarm.n, rate).mean()
    assert alarm.p == pytest.approx(tail, rel=1e-3)


def test_the_fused_score_goes_on_rising_beyond_all_reference_scores() -> None:
    reference = torch.linspace(0, 1, 101, dtype=torch.float64)
    scores = torch.tensor([0.5, 1.0, 1.1, 2.0, torch.inf], dtype=torch.float64)
    found = surprise(scores, reference)
    assert bool((found.diff() > 0).all())
    assert float(found[0]) == pytest.approx(float(-Calibration(reference).p_value(0.5).log()))


def test_alarms_use_only_rows_that_no_detector_was_fitted_on() -> None:
    x = digits()[0]
    evidence = versus_of(x[:1200], x[1200:])
    found = alarms(evidence)
    assert isinstance(found, Alarm)
    held = 1200 - int(evidence.versus.scorers["Mahalanobis", "x"].scorer.n)
    assert 0.6 * held < found.calibration.n < 0.9 * held


@pytest.mark.truth("Hanley and McNeil's error at both ends, times 1.96")
def test_detectors_are_listed_with_an_interval_of_95_percent() -> None:
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    evidence = versus_of(x[:200], 1.2 * x[200:])
    found = replace(evidence.versus, asked=(("KNN", "x"),))
    evidence = replace(evidence, versus=found)
    section, scores = versus_section(evidence), scored(evidence)
    assert section is not None
    assert not isinstance(scores, str)
    row, n, m = section["detectors"][0], len(scores.own["KNN", "x"]), 100
    for end in (row["low"], row["high"]):
        pairs = (n + m) / 2 - 1
        spread = 1 + pairs * ((1 - end) / (2 - end) + end / (1 + end))
        se = math.sqrt(end * (1 - end) * spread / (n * m))
        assert abs(row["auroc"] - end) / se == pytest.approx(1.959964, rel=1e-4)
