"""Stitched models: a rotated twin, dead units, and the analysis of a printed table."""

import pytest
import torch

from narrow import present
from sonde.core import InputError
from sonde.measure import stitch
from sonde.measure.stitch import of_table


def nets(dead=13):
    draw = torch.Generator().manual_seed(0)
    down = torch.randn(5, 20, generator=draw, dtype=torch.float64)
    up = torch.randn(20, 3, generator=draw, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=draw, dtype=torch.float64))[0]
    live = torch.arange(20) >= dead  # the first units never vary

    def front(x):
        return (x @ down).relu() * live

    x = torch.randn(400, 5, generator=draw, dtype=torch.float64)
    fronts = [front, lambda x: front(x) @ turn + 1.0]
    backs = [lambda h: h @ up, lambda h: (h - 1.0) @ turn.T @ up]
    return fronts, backs, x, (front(x) @ up).argmax(1)


@pytest.mark.truth("closed form: a rotated twin loses nothing through the map")
def test_a_rotated_twin_with_dead_units():
    fronts, backs, x, label = nets()
    found = stitch(fronts, backs, x[:300], x[300:], label[300:])
    assert found.null == 1.0
    assert float(found) > 0.98
    bare = stitch(fronts, backs, x[:300], x[300:], label[300:], "none")
    assert float(bare) < 0.8
    itself = stitch([fronts[0]] * 2, [backs[0]] * 2, x[:300], x[300:], label[300:])
    assert float(itself) > 0.98


@pytest.mark.truth("two-way analysis of the table (.9, .8), (.7, .5), printed")
def test_effects_of_a_table():
    right = torch.zeros(2, 2, 10, dtype=torch.float64)
    for (a, b), n in {(0, 0): 9, (0, 1): 8, (1, 0): 7, (1, 1): 5}.items():
        right[a, b, :n] = 1
    found = of_table(right)
    assert found.front.tolist() == pytest.approx([0.125, -0.125])
    assert found.back.tolist() == pytest.approx([0.075, -0.075])
    assert found.interaction.flatten().tolist() == pytest.approx([-0.025, 0.025, 0.025, -0.025])
    shares = (found.share_front, found.share_back, found.share_interaction)
    assert shares == pytest.approx((0.714286, 0.257143, 0.028571), abs=1e-6)
    assert (float(found), found.null) == (0.75, 0.7)


def test_labels_and_parts_must_fit():
    fronts, backs, x, label = nets()
    with pytest.raises(InputError, match="got 2 fronts, 1 backs"):
        stitch(fronts, backs[:1], x, x, label)
    with pytest.raises(InputError, match="expected 400 labels, got 3"):
        stitch(fronts, backs, x, x, label[:3])


def test_answers_that_are_not_finite_are_refused():
    """The largest of NaNs is class 0, so a row that broke would count as an answer."""
    fronts, backs, x, label = nets()
    broken = x.clone()
    broken[3] = float("nan")
    with pytest.raises(InputError, match="finite logits"):
        stitch(fronts, backs, x, broken, label)
    with pytest.raises(InputError, match="finite logits of shape"):
        stitch(fronts, backs, x, x, label[:, None])


@pytest.mark.truth("the exact interval of n of n")
def test_rows_that_are_all_right_have_an_error():
    found = of_table(torch.ones(2, 2, 30, dtype=torch.float64))
    assert 1.959964 * float(present(found.se)) == pytest.approx(1 - 0.025 ** (1 / 30))
