"""Variances of float32 rows so short that their squares are nothing in float32."""

import pytest
import torch

from sonde.stats import ClassMoments, GroupMeans, Moments, Scalars

SHORT = 1e-24
DRAW = torch.Generator().manual_seed(1)
X = torch.randn(150, 5, generator=DRAW) * torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0]) + 4.0
LABEL = torch.arange(150) % 3
FIGURES = {
    "moments diag": lambda x: Moments("diag").observe(x).scatter,
    "moments full": lambda x: Moments("full").observe(x).scatter.diagonal(),
    "scalars": lambda x: Scalars().observe(x).scatter,
    "class diag": lambda x: ClassMoments("diag").observe(x, LABEL).within.sum(0),
    "class trace": lambda x: ClassMoments("trace").observe(x, LABEL).within.sum(),
    "group means": lambda x: GroupMeans().observe(x, LABEL).within,
}


@pytest.mark.truth("the same rows in float64")
@pytest.mark.parametrize("name", FIGURES)
def test_squares_of_short_rows(name):
    x = torch.cat([X, SHORT * X], 1)  # beside long ones
    want, got = (FIGURES[name](rows) for rows in (x.double(), x))
    assert torch.allclose(got, want, rtol=1e-5, atol=0.0)
    short, alone = (FIGURES[name](rows) for rows in (SHORT * X.double(), SHORT * X))
    assert torch.allclose(alone, short, rtol=1e-5, atol=0.0)
