"""Edits of single units and features."""

import pytest
import torch

from sonde.core import Add, EditContext, InputError, Project, ShapeError, Site
from sonde.edit import ClampFeature, ClampUnit, MeanAblate, ScaleUnit
from sonde.stats import Moments
from sonde.tap import editing
from sonde.testing import check

SITE, NOTHING = Site("layers.0"), EditContext()
X = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
VECTOR = torch.tensor([0.3, -2.0, 0.0, 1.0], dtype=torch.float64)


@pytest.mark.slow
def test_they_keep_the_laws():
    for strength in (1.0, 0.5):
        check(ClampUnit((0, 2), -1.0, strength))
        check(ScaleUnit(3, 0.0, strength))
        check(ClampFeature(VECTOR, 2.0, strength=strength))
        check(MeanAblate(VECTOR, strength=strength))


@pytest.mark.truth("the dictionary read again by a product with all its features")
def test_a_feature_of_an_orthonormal_dictionary_takes_the_value_and_the_others_stay():
    features = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0].T[:3]
    found = ClampFeature(features[1], 2.5, rectified=False).apply(X, SITE, NOTHING)
    read, before = found @ features.T, X @ features.T
    assert torch.allclose(read[..., 1], torch.tensor(2.5).double())
    assert torch.allclose(read[..., [0, 2]], before[..., [0, 2]])
    residual = X - before @ features
    assert torch.allclose(found - read @ features, residual)
    rectified = ClampFeature(features[1], 0.0).apply(X, SITE, NOTHING) @ features.T
    assert torch.allclose(rectified[..., 1], before[..., 1].clamp(max=0))


@pytest.mark.truth("logits of a linear head by hand")
def test_a_clamped_unit_moves_the_logit_by_its_weight():
    head = torch.nn.Linear(4, 2, dtype=torch.float64)
    net = torch.nn.Sequential(torch.nn.Identity(), head)
    x = X[:, 0]
    with torch.no_grad():
        plain = net(x)
        with editing(net, ClampUnit(2, 7.0, 0.5), "0"):
            moved = net(x) - plain
        with editing(net, ScaleUnit(2, 3.0, 0.5), "0"):
            scaled = net(x) - plain
        with editing(net, MeanAblate(Moments().observe(x).mean, 2), "0"):
            average = net(x) - plain
    weight = head.weight[:, 2].detach()
    assert torch.allclose(moved, 0.5 * (7 - x[:, 2:3]) * weight)
    assert torch.allclose(scaled, x[:, 2:3] * weight)
    assert torch.allclose(average, (x[:, 2].mean() - x[:, 2:3]) * weight)


def test_what_is_no_direction_is_refused():
    for make in (Add, Project, lambda d: ClampFeature(d, 1.0)):
        for wrong, message in (
            (torch.zeros(4), "zeros only"),
            (torch.tensor([1.0, torch.nan, 0.0, 0.0]), "1 entries that are not finite"),
        ):
            with pytest.raises(InputError, match=message):
                make(wrong)
        with pytest.raises(ShapeError, match=r"as wide as the direction, 3, got 4 at layers\.0"):
            make(torch.ones(3)).apply(X, SITE, NOTHING)
    with pytest.raises(ShapeError, match=r"ScaleUnit.apply: expected units from 0 to 3, got \[4\]"):
        ScaleUnit(4, 1.0).apply(X, SITE, NOTHING)
    with pytest.raises(InputError, match="MeanAblate: expected one finite number"):
        MeanAblate(torch.tensor([1.0, torch.inf]))
