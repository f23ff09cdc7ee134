"""Grids that are chosen by the error of a layer's output."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde import Model
from sonde.compress import RTN, layer_grams
from sonde.compress._grid import codes_of, each_entry, grid_of
from sonde.compress._output_grid import output_grid
from sonde.compress.gptq import loss_of
from sonde.data import open_inputs
from sonde.weights import Grid

GRID = Grid.over(3, 16, 48)


def _loss(w: torch.Tensor, values: Any, h: torch.Tensor) -> torch.Tensor:
    scale, offset = (each_entry(x, 16, w.shape[1]) for x in values)
    return loss_of(w - ((codes_of(w, scale, offset, 3) - 4) * scale + offset), h)


def _case() -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights with heavy tails, and the second moment of inputs with a large mean."""
    draw = torch.Generator().manual_seed(2)
    w = torch.randn(20, 48, generator=draw, dtype=torch.float64) ** 3
    x = torch.randn(400, 48, generator=draw, dtype=torch.float64) + 2.0
    return w, x.T @ x / len(x)


@pytest.mark.truth("the errors of all nine grids, row by row")
def test_each_row_has_the_best_form_and_then_the_best_range() -> None:
    w, h = _case()
    found = _loss(w, output_grid(w, GRID, "asymmetric", [(torch.arange(20), h)]), h)
    how = ({"zero": "free"}, {"zero": "point"}, {"symmetry": "symmetric"})
    every = torch.stack(
        [
            torch.stack([_loss(w, grid_of(w * share, GRID, **one), h) for one in how])
            for share in (1.0, 0.85, 0.7)
        ]
    )
    form = every[0].argmin(0)
    want = every[:, form, torch.arange(20)].amin(0)
    torch.testing.assert_close(found, want)
    assert len(form.unique()) > 1
    assert float(found.sum()) < 0.7 * float(every[0, 0].sum())
    even = _loss(w, output_grid(w, GRID, "symmetric", [(torch.arange(20), h)]), h)
    torch.testing.assert_close(even, every[:, 2].amin(0))


def test_groups_of_outputs_have_inputs_of_their_own() -> None:
    w, h = _case()
    halves = [(torch.arange(10), h), (torch.arange(10, 20), torch.eye(48).double())]
    scale, offset = output_grid(w, GRID, "asymmetric", halves)
    for rows, moment in halves:
        alone = output_grid(w[rows], GRID, "asymmetric", [(torch.arange(10), moment)])
        assert torch.equal(scale[rows], alone[0])
        assert torch.equal(offset[rows], alone[1])


def test_a_point_at_zero_keeps_weights_of_zero() -> None:
    w = torch.linspace(-1, 2.3, 48, dtype=torch.float64)[None].clone()
    w[0, 5] = w[0, 20] = w[0, 40] = 0.0
    scale, offset = (each_entry(x, 16, 48) for x in grid_of(w, GRID, zero="point"))
    values = (codes_of(w, scale, offset, 3) - 4) * scale + offset
    assert bool((values[0, [5, 20, 40]].abs() < 0.02 * scale[0, [5, 20, 40]]).all())


@pytest.mark.truth("the outputs of the rounded nets on the same inputs")
def test_rounding_by_the_output_keeps_answers_better_than_by_the_weights() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 5)).eval()
    net[0].weight.data = _case()[0].float()
    x = torch.randn(300, 48) + 2.0
    grams = layer_grams(net, open_inputs(Model(net), x), progress=False)
    gaps = {}
    for clip in (None, "mse", "output"):
        rule = RTN(bits=3, group=16, clip=clip)
        new = rule.plan(net, {"calibration": grams} if clip == "output" else {}).fold(net)
        with torch.no_grad():
            gaps[clip] = float((new[0](x) - net[0](x)).square().mean())
    assert gaps["output"] < 0.7 * min(gaps[None], gaps["mse"])


@pytest.mark.truth("the same rounding, asked for by its name")
def test_below_four_bits_examples_choose_the_grid_by_default() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(48, 20)).eval(), torch.randn(300, 48) + 2.0
    for bits, clip in ((3, "output"), (4, None)):
        new, asked = (
            RTN(bits, 16, clip=c).plan(net, {"calibration": x}).fold(net) for c in (None, clip)
        )
        assert torch.equal(new(x), asked(x))
    assert not torch.equal(new(x), RTN(3, 16).plan(net).fold(net)(x))
