"""Error bars where groups are larger than the sample of rows can hold whole."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from findings._evidence import evidence_of
from sonde.findings.codes.snd022 import SND022
from sonde.findings.codes.snd023 import SND023
from sonde.findings.evidence.modules.block_updates import sampled_ends, update_per_spread
from sonde.findings.evidence.record import Evidence
from sonde.findings.profile import site_profile

GROUPS, EACH = 200, 30
MEAN = 6 * torch.arange(1, 13).double()


def _means(seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows of two sites, one for each group."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(GROUPS, 12, dtype=torch.float64, generator=generator)
    mix = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    rows = x @ mix * torch.linspace(0.5, 2, 12).double()
    change = torch.randn(GROUPS, 12, dtype=torch.float64, generator=generator)
    return rows + MEAN, rows + MEAN + change * x[:, :1]


def _scanned(seed: int) -> Evidence:
    """Return the evidence of groups of nearly equal rows."""
    group = torch.arange(GROUPS).repeat_interleave(EACH)
    noise = torch.randn(
        2, len(group), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    a, b = (m[group] + 0.01 * n for m, n in zip(_means(seed), noise, strict=True))
    return evidence_of({"a": a, "b": b}, group=group.tolist())


def _half(figure: Any) -> float:
    return (figure.high - figure.low) / (2 * 1.959964)


def _participation(x: Tensor) -> float:
    values = torch.linalg.eigvalsh(torch.cov(x.T))
    return float(values.sum().square() / values.square().sum())


def _directions(x: Tensor) -> float:
    return float(12**2 / torch.corrcoef(x.T).square().sum())


def _cone(x: Tensor) -> float:
    kept = torch.arange(9)  # the three largest means are left out
    return float(x.var(0, correction=0)[kept].sum().sqrt() / x.mean(0)[kept].norm())


def _update(x: Tensor, y: Tensor) -> float:
    return float(((y - x).square().mean(0) / x.var(0, correction=0)).median().sqrt())


@pytest.mark.slow
@pytest.mark.truth("spread of each figure over 300 draws of the groups")
def test_errors_are_those_of_groups_though_rows_are_sampled() -> None:
    pairs = [_means(seed) for seed in range(1000, 1300)]
    truth = {
        "participation_ratio": [_participation(a) for a, _ in pairs],
        "directions": [_directions(a) for a, _ in pairs],
        "spread_per_mean": [_cone(a) for a, _ in pairs],
        "update": [_update(a, b) for a, b in pairs],
    }
    found: dict[str, list[float]] = {name: [] for name in truth}
    for seed in range(3):
        evidence = _scanned(seed)
        first = Evidence(evidence.sites[:1], evidence.columns, evidence.data, evidence.counters)
        values = site_profile(evidence.sites[0], evidence)["values"]
        found["participation_ratio"].append(values["participation_ratio"]["se"])
        found["directions"].append(_half(SND022().check(first).figure))
        found["spread_per_mean"].append(_half(SND023().check(first).figure))
        for before, site in pairwise(evidence.sites):
            assert site.all.update is not None
            assert site.all.received is not None
            value = update_per_spread(site.all.update, site.all.received)
            assert value is not None
            low, high = sampled_ends(before, site, value, evidence.n_groups)
            assert low is not None
            assert high is not None
            found["update"].append((high - low) / (2 * 1.959964))
    for name, draws in truth.items():
        sd = float(torch.tensor(draws, dtype=torch.float64).std())
        mean = math.fsum(found[name]) / len(found[name])
        assert mean == pytest.approx(sd, rel=0.3), (name, sd, found[name])
