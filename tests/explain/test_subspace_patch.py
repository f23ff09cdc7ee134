"""Subspace patches of a net of three units, in closed form."""

from typing import Any

import pytest
import torch
from torch import nn

from circuits import linear
from sonde.core import InputError, ShapeError
from sonde.explain import Objective, SubspacePatch

READERS = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
BASE = torch.tensor([[-1.0], [0.5], [2.0], [0.1]], dtype=torch.float64)
SOURCE = torch.tensor([[3.0], [-2.0], [1.0], [4.0]], dtype=torch.float64)


def three_units() -> Any:
    """``h = (x, 0, x)``, read by ``2 h_2`` and ``h_3``; the answer is their sum, x."""
    return nn.Sequential(
        linear(torch.tensor([[1.0], [0.0], [1.0]])), linear(READERS), linear(torch.ones(1, 2))
    )


def found(direction, readers: Any = READERS):
    way = torch.tensor(direction, dtype=torch.float64)
    goal = Objective(target=0)
    return SubspacePatch().explain(
        three_units(),
        SOURCE,
        corrupt=BASE,
        direction=way,
        readers=readers,
        objective=goal,
        site="0",
    )


@pytest.mark.truth("closed form: h = (x, 0, x), y = 2 h_2 + h_3; along (1, 1, 0) y becomes s")
def test_a_dormant_and_an_idle_unit_together_make_an_illusion():
    illusion = found([1.0, 1.0, 0.0])
    assert illusion.verdict == "illusory"
    assert float(illusion) == pytest.approx(1.0)
    moved = float((SOURCE - BASE).mean())
    assert illusion.effects == pytest.approx(
        {"direction": moved, "row part": 0.0, "null part": 0.0, "site": moved}
        | {"random": illusion.effects["random"]}
    )
    torch.testing.assert_close(illusion.row_part, torch.tensor([0, 0.5**0.5, 0]).double())
    assert (illusion.null_share, illusion.driving_share) == pytest.approx((0.5, 1.0))
    # The null part is h_1 / sqrt(2), which is x / sqrt(2); the row part is h_2, always 0.
    within = (SOURCE.var() + BASE.var()) / 2  # of two runs of as many rows
    assert illusion.separation == pytest.approx((0.0, abs(moved) / float(within) ** 0.5))
    spread = float(torch.cat([SOURCE, BASE]).var(correction=0)) / 2
    assert illusion.variance == pytest.approx((0.0, spread))
    assert illusion.out_of_range > 0  # h_2 is never anything but 0


@pytest.mark.truth("closed form: unit 3 is read and varies; units 1 and 2 alone do nothing")
def test_what_is_read_and_varies_is_no_illusion():
    true = found([0.0, 0.0, 2.0])
    assert (true.verdict, float(true), true.null_share) == ("not shown", pytest.approx(1.0), 0.0)
    assert true.effects["row part"] == pytest.approx(true.effects["direction"])
    for unit in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]):
        assert float(found(unit)) == pytest.approx(0.0)
        assert found(unit).verdict == "not shown"


@pytest.mark.truth("closed form: composed readers (0, 2, 1) split even the true direction")
def test_composed_readers_prove_nothing():
    composed = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64)
    for way in ([1.0, 1.0, 0.0], [0.0, 0.0, 1.0]):
        made = found(way, composed)
        # Along v_row alone, all that is read moves: the effect is that of v or more of it.
        assert made.verdict == "not shown"
    split = found([0.0, 0.0, 1.0], composed)
    torch.testing.assert_close(split.row_part, torch.tensor([0.0, 0.4, 0.2]).double())
    assert split.null_share == pytest.approx(0.8)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="of the same width, got a direction of 2"):
        found([1.0, 0.0])
    with pytest.raises(InputError, match="not zero"):
        found([0.0, 0.0, 0.0])
