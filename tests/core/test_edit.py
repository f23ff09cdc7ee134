"""Edits: each formula, and strength 0 gives back the very tensor."""

import math

import pytest
import torch

from sonde.core.edit import Add, Clamp, Edit, EditContext, Project, Replace, Scale
from sonde.core.site import Site

SITE, CONTEXT = Site("layers.0"), EditContext()
D = torch.tensor([3.0, 0.0, -4.0])


def apply(edit: Edit, x: torch.Tensor) -> torch.Tensor:
    return edit.apply(x, SITE, CONTEXT)


def edits(strength: float) -> list[Edit]:
    return [
        Add(D, strength),
        Project(D, strength),
        Scale(3.0, strength),
        Clamp(-0.5, 0.5, strength),
        Replace(torch.zeros(3), strength),
    ]


@pytest.mark.parametrize("edit", edits(0.0), ids=lambda e: type(e).__name__)
def test_strength_zero_is_the_very_tensor(edit):
    x = torch.randn(2, 4, 3)
    assert apply(edit, x) is x


@pytest.mark.parametrize("edit", edits(1.0) + edits(0.5), ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3)])
def test_shape_and_type_stay_and_the_input_is_untouched(edit, dtype, shape):
    x = torch.linspace(-2.0, 2.5, math.prod(shape)).reshape(shape).to(dtype)
    before = x.clone()
    after = apply(edit, x)
    assert (after.shape, after.dtype) == (x.shape, dtype)
    assert torch.equal(x, before)
    assert not torch.equal(after, x)
    assert after.data_ptr() != x.data_ptr()


@pytest.mark.truth("the formulas, number by number")
@pytest.mark.parametrize("s", [1.0, 0.5, 2.0, -1.0])
def test_the_formulas(s):
    x = torch.randn(6, 3, dtype=torch.float64)
    for row, added, projected, scaled, clamped in zip(
        x.tolist(),
        apply(Add(D, s), x).tolist(),
        apply(Project(D, s), x).tolist(),
        apply(Scale(3.0, s), x).tolist(),
        apply(Clamp(-0.5, None, s), x).tolist(),
        strict=True,
    ):
        d = [3.0, 0.0, -4.0]
        assert added == pytest.approx([v + s * w for v, w in zip(row, d, strict=True)])
        along = sum(v * w for v, w in zip(row, d, strict=True)) / 25
        assert projected == pytest.approx([v - s * along * w for v, w in zip(row, d, strict=True)])
        assert scaled == pytest.approx([v * (1 + 2 * s) for v in row])
        assert clamped == pytest.approx([v + s * (max(v, -0.5) - v) for v in row])


def test_projection_removes_and_reflects():
    x = torch.randn(9, 3, dtype=torch.float64)
    assert torch.allclose(apply(Project(D), x) @ D.double(), torch.zeros(9).double(), atol=1e-12)
    twice = apply(Project(D, 2.0), apply(Project(D, 2.0), x))
    assert torch.allclose(twice, x)


def test_replacement_broadcasts_and_does_not_hand_out_its_own_memory():
    values = torch.tensor([1.0, 2.0, 3.0])
    after = apply(Replace(values), torch.zeros(2, 2, 3))
    assert torch.equal(after, values.expand(2, 2, 3))
    after.zero_()
    assert values.tolist() == [1.0, 2.0, 3.0]
    mixed = apply(Replace(values, 0.25), torch.zeros(1, 3))
    assert mixed.tolist() == [[0.25, 0.5, 0.75]]


def test_clamp_of_one_side():
    x = torch.tensor([-2.0, 0.0, 2.0])
    assert apply(Clamp(low=-1.0), x).tolist() == [-1.0, 0.0, 2.0]
    assert apply(Clamp(high=1.0), x).tolist() == [-2.0, 0.0, 1.0]
