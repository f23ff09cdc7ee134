"""Rows so short that their squares are nothing in single precision, as gradients are."""

import pytest
import torch

from sonde import measure
from sonde.detect import KNN, NNGuide

SHORT = 1e-24
DRAW = torch.Generator().manual_seed(5)
X = torch.randn(140, 3, generator=DRAW) @ torch.randn(3, 6, generator=DRAW) + torch.arange(6.0)
Y = torch.tanh(X @ torch.randn(6, 6, generator=DRAW))


@pytest.mark.truth("the same rows, longer")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("uniformity", {}),
        ("anisotropy", {}),
        ("mutual_knn", {}),
        ("rsa", {"distance": "cosine"}),
        ("rsa", {"distance": "correlation"}),
        ("update_similarity", {}),
    ],
)
def test_directions_of_short_rows(name, options):
    figure = getattr(measure, name)
    pair = () if name in ("uniformity", "anisotropy") else (Y,)
    want = figure(X, *pair, **options)
    assert "dead" not in want.flags
    for dtype in (torch.float32, torch.float64):
        short = figure((SHORT * X).to(dtype), *((SHORT * y).to(dtype) for y in pair), **options)
        assert float(short) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.truth("the same rows, longer")
def test_neighbours_of_short_rows():
    rows = {1.0: X, SHORT: SHORT * X}
    want, got = (KNN(k=7).fit(x[:90]).score(x[90:]) for x in rows.values())
    assert want.min() > 0.0
    assert torch.allclose(want.double(), got.double(), rtol=1e-4)
    logits = X @ torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    guides = (NNGuide(k=7).fit(x[:90], logits=logits[:90]) for x in rows.values())
    want, got = (
        g.score(x[90:], logits=logits[90:]) for g, x in zip(guides, rows.values(), strict=True)
    )
    assert torch.allclose(want.double(), got.double(), rtol=1e-4)
