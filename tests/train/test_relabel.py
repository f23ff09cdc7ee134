"""Relabelling by distance against loops with Moebius addition, and a planted background."""

import math

import pytest
import torch

from sonde.core import InputError
from sonde.train import relabel_unknown


def moebius(x, y, c):
    """Return -x + y in the ball."""
    dot = -sum(a * b for a, b in zip(x, y, strict=True))
    xx, yy = (sum(a * a for a in v) for v in (x, y))
    below = 1 + 2 * c * dot + c * c * xx * yy
    one, two = -(1 + 2 * c * dot + c * yy) / below, (1 - c * xx) / below
    return [one * a + two * b for a, b in zip(x, y, strict=True)]


def hyperbolic(u, v, c=0.1):
    """Return the distance of two vectors that are mapped into the ball."""
    points = []
    for w in (u, v):
        length = math.hypot(*w)
        cut = min(length, 2.3)
        points.append([math.tanh(math.sqrt(c) * cut) / (math.sqrt(c) * length) * a for a in w])
    return 2 / math.sqrt(c) * math.atanh(math.sqrt(c) * math.hypot(*moebius(*points, c)))


@pytest.mark.essential
@pytest.mark.truth("loops over rows and classes, distances by Moebius addition")
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_rows_within_the_radius_are_relabelled(share):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=draw).double()
    label = torch.randint(-1, 3, (60,), generator=draw)
    rows, labels = x.tolist(), label.tolist()
    centres = []
    for c in range(3):
        own = [r for r, k in zip(rows, labels, strict=True) if k == c]
        centres.append([sum(axis) / len(own) for axis in zip(*own, strict=True)])
    near = [min(hyperbolic(r, c) for c in centres) for r in rows]
    known = sorted(d for d, k in zip(near, labels, strict=True) if k >= 0)
    radius = known[round(share * len(known)) - 1]
    wanted = [9 if k < 0 and d <= radius else k for d, k in zip(near, labels, strict=True)]
    assert relabel_unknown(x, label, 9, keep=share).tolist() == wanted
    assert 9 in wanted
    assert share == 1.0 or -1 in wanted


@pytest.mark.truth("planted: unknown rows among the known classes, background far away")
@pytest.mark.parametrize("metric", ["poincare", "euclidean", "cosine"])
def test_background_keeps_its_label(metric):
    draw = torch.Generator().manual_seed(1)
    centre = torch.tensor(
        [[1.0, 0.55, 0.0], [0.55, 1.0, 0.0], [0.77, 0.77, 0.0], [-1.0, -1.0, 1.0]]
    )
    kind = torch.arange(4).repeat(20)
    x = centre[kind] + 0.2 * torch.randn(80, 3, generator=draw)
    label = torch.where(kind < 2, kind, -1)
    found = relabel_unknown(x, label, 2, metric)
    assert torch.equal(found[kind < 2], label[kind < 2])
    assert (found[kind == 2] == 2).double().mean() > 0.9
    assert (found[kind == 3] == -1).all()


def test_rows_that_are_not_finite_are_no_unknown_objects():
    draw = torch.Generator().manual_seed(2)
    x, label = torch.randn(40, 3, generator=draw), torch.arange(40) % 3 - 1
    clean = relabel_unknown(x, label, 7)
    assert int(clean[0]) == 7
    x[0, 1] = math.nan
    found = relabel_unknown(x, label, 7)
    assert int(found[0]) == -1
    assert torch.equal(found[1:], clean[1:])
    x[1, 0] = math.inf
    with pytest.raises(InputError, match="expected finite labelled rows"):
        relabel_unknown(x, label, 7)


def test_what_is_refused():
    x = torch.zeros(3, 2)
    with pytest.raises(InputError, match=r"keep in \(0, 1\], got 'poincare' and 0.0"):
        relabel_unknown(x, torch.tensor([0, 1, -1]), 2, keep=0.0)
    with pytest.raises(InputError, match="got 3 labels, 0 of them 0 or more"):
        relabel_unknown(x, torch.tensor([-1, -1, -1]), 2)
