import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

from findings._evidence import digits, evidence_of, shuffled, states, versus_of
from findings._nets import assert_raised
from sonde.core.calibration import Calibration
from sonde.core.stream import Stream
from sonde.detect import KNN, Mahalanobis
from sonde.findings.codes.snd052 import SND052
from sonde.findings.evidence.versus.alarms import Alarm, Alarms, fuse, surprise
from sonde.findings.evidence.versus.comparison import alarms, scored, versus_section
from sonde.run.fitting.fit import fit
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.fuse import with_fused
from sonde.run.scoring.score import score
from sonde.run.scoring.tables import part_of


@pytest.mark.slow
def test_noise_images_raise_alarms_and_another_half_does_not() -> None:
    x, order = digits()[0], shuffled(1797)
    a, b = x[order[:1200]], x[order[1200:]].clone()
    clean = versus_of(states(a)[0], states(b)[0])
    assert SND052().check(clean).state == "clear"
    generator = torch.Generator().manual_seed(0)
    b[:60] = torch.rand(60, 64, generator=generator)
    evidence = versus_of(states(a)[0], states(b)[0], other={"ids": [f"o{i}" for i in range(597)]})
    finding = assert_raised(SND052().check(evidence), "warning")
    assert finding.figure.value > 0.08
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


def both(seed: int, n_held: int, m: int, far: float = 0.0) -> Alarms:
    """Return alarms of two dependent scores, no different in OTHER unless ``far``."""
    rng = np.random.default_rng(seed)

    def scores(n: int, shift: float) -> dict[tuple[str, str], torch.Tensor]:
        base = rng.normal(size=n) + shift * (rng.uniform(size=n) < 0.05)
        return {
            ("a", "x"): torch.from_numpy(base + 0.3 * rng.normal(size=n)),
            ("b", "x"): torch.from_numpy(base + 0.3 * rng.normal(size=n)),
        }

    held, other = scores(n_held, 0.0), scores(m, far)
    found = fuse(held, torch.arange(n_held), other, torch.arange(m) + 10**6, 0.01)
    assert isinstance(found, Alarms)
    return found


def fused(seed: int, n_held: int, m: int, far: float = 0.0) -> Alarm:
    return both(seed, n_held, m, far).total


@pytest.mark.slow
def test_the_beta_binomial_keeps_its_level_where_the_binomial_does_not() -> None:
    pairs = [both(seed, 400, 2000) for seed in range(300)]
    assert sum(a.lead is not None and a.lead.p < 0.01 for a in pairs) <= 9
    found = [a.total for a in pairs]
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
    assert isinstance(found, Alarms)
    held = 1200 - int(evidence.versus.scorers["Mahalanobis", "x"].scorer.n)
    assert 0.6 * held < found.total.calibration.n < 0.9 * held


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


SITES = tuple("abcdefgh")


def at_sites(n: int, seed: int, far: float = 0.0) -> dict[str, torch.Tensor]:
    """Return rows of eight sites, of which the last moves."""
    draw = torch.Generator().manual_seed(seed)
    found = {site: torch.randn(n, 6, generator=draw) for site in SITES}
    found["h"] += far
    return found


@pytest.mark.slow
@pytest.mark.truth("the lines and the fused sum of `sonde score --fuse`, of the same rows")
def test_the_site_that_sees_leads_and_both_shares_are_those_of_score_fuse() -> None:
    data, other = at_sites(1600, 0), at_sites(600, 1, 1.5)
    evidence = versus_of(data, other)
    finding = SND052().check(evidence).finding
    found = alarms(evidence)
    assert finding is not None
    assert isinstance(found, Alarms)
    assert found.lead is not None
    ((method, site),) = found.lead.names
    assert site == "h"
    assert finding.sentence.startswith(f"By {method} at h, the best of 16 scores, ")
    assert found.lead.rate > found.total.rate + 0.1
    first = {s: x[:800] for s, x in data.items()}
    rest = {s: x[800:] for s, x in data.items()}
    bundle = fit([Mahalanobis(), KNN(m=2048)], Stream.of(first), calibrate=0, progress=False)
    bundle = calibrate(bundle, Stream.of(rest), progress=False)
    table = with_fused(score(bundle, Stream.of(other), progress=False), bundle, "sum")

    def beyond(instrument: str, where: str) -> float:
        p = part_of(table, (instrument, where))["p"].to_numpy()
        return float((p <= 0.01).mean())

    word = {"Mahalanobis": "mahalanobis", "KNN": "knn"}[method]
    names = set(zip(table["instrument"].to_pylist(), table["site"].to_pylist(), strict=True))
    line = next(n for n in names if n[0].lower().startswith(word) and n[1].startswith("h"))
    total = next(n for n in names if n[0] == "fuse(sum)")
    assert found.lead.rate == pytest.approx(beyond(*line), abs=0.12)
    assert found.total.rate == pytest.approx(beyond(*total), abs=0.06)


@pytest.mark.slow
def test_new_rows_beside_those_of_the_training_are_a_note() -> None:
    data, other = at_sites(1600, 0), at_sites(600, 1, 1.5)

    def known(n: int, wrong: int) -> dict[str, Any]:
        label = torch.arange(n) % 2
        answer = torch.where(torch.arange(n) < wrong, 1 - label, label)
        logits = 9.0 * torch.nn.functional.one_hot(answer, 2)
        return {"label": label, "logits": logits, "facts": {"labels_are_models": True}}

    levels = []
    for wrong in (12, 500):
        evidence = versus_of(data, other, other=known(600, wrong), **known(1600, 0))
        finding = SND052().check(evidence).finding
        assert finding is not None
        assert len(finding.sentence) <= 240
        levels.append((finding.level, "as expected for new rows" in finding.sentence))
    assert levels == [("note", True), ("warning", False)]


def test_one_row_of_other_is_too_few_to_say() -> None:
    check = SND052().check(versus_of(at_sites(800, 0), at_sites(1, 1, 9.0)))
    assert check.state == "clear"
    assert "1 row of OTHER: too few" in check.reason
