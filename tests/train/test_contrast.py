"""Contrast: closed forms, and a loop over rows."""

import math

import pytest
import torch

from sonde.core import InputError
from sonde.train import Contrast


@pytest.mark.truth("closed form of orthonormal pairs")
def test_orthonormal_pairs():
    x = torch.eye(4).repeat(2, 1) * torch.linspace(1, 3, 8)[:, None]
    view = torch.arange(2).repeat_interleave(4)
    # the positive at 1 / .5 = 2, six others at 0
    assert float(Contrast(0.5)(x, view=view)) == pytest.approx(math.log(1 + 6 * math.exp(-2)))
    assert float(Contrast(0.5)(x * 0 + 1, view=view)) == pytest.approx(math.log(7))


@pytest.mark.truth("a loop over anchors and positives")
@pytest.mark.parametrize("decoupled", [False, True])
def test_labels_by_a_loop(decoupled):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(9, 4, generator=generator)
    label = torch.tensor([0, 0, 1, 0, 1, 2, -1, -1, 0])
    unit = (x / x.norm(dim=1, keepdim=True)).double()
    rows = []
    for i in range(9):
        near = [j for j in range(9) if j != i and label[j] == label[i] >= 0]
        if not near:
            continue
        scores = (unit @ unit[i] / 0.3).tolist()
        each = []
        for p in near:
            among = [p] if decoupled else near
            others = [j for j in range(9) if j != i and j not in near]
            total = sum(math.exp(scores[j]) for j in [*among, *others])
            each.append(math.log(total) - scores[p])
        rows.append(sum(each) / len(each))

    found = Contrast(0.3, decoupled)(x, label)

    assert float(found) == pytest.approx(sum(rows) / len(rows), rel=1e-5)


def test_rows_without_company_are_refused():
    with pytest.raises(InputError, match="expected rows that belong together, got none"):
        Contrast()(torch.randn(3, 2))
