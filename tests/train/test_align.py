"""Alignment with a teacher: closed forms."""

import math

import pytest
import torch
from torch import nn

from narrow import present
from sonde.core import InputError
from sonde.train import Align


@pytest.mark.truth("closed forms: cosines of known vectors")
def test_distances_of_known_vectors():
    x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 3.0]])
    assert float(Align()(x, y)) == pytest.approx(-(0.5**0.5))
    assert float(Align()(y, y)) == pytest.approx(-1.0)
    z, same = torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    assert float(Align("relational")(z, same)) == pytest.approx(0.5)
    # a layer norm takes (1, 3) to (-1, 1); distances 1.5 and 3: 1.5^2 / 4 and 3 - 1
    x, y = torch.tensor([[0.5, 4.0]]), torch.tensor([[1.0, 3.0]])
    assert float(Align("smooth_l1")(x, y)) == pytest.approx((1.5**2 / 4 + 2.0) / 2, rel=1e-4)
    assert float(Align("mse")(x, y)) == pytest.approx((1.5**2 + 3.0**2) / 2, rel=1e-4)


def test_relations_do_not_change_with_rotation_scale_or_width():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 4, generator=generator), torch.randn(9, 6, generator=generator)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    plain, turned = (Align("relational")(rows, y) for rows in (x, -2.5 * x @ turn))
    torch.testing.assert_close(plain, turned)


def test_the_target_has_no_gradient_and_other_widths_are_refused():
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    Align("cosine", "mlp", width=6, hidden=5)(x, y).backward()
    assert x.grad is not None
    assert y.grad is None
    with pytest.raises(InputError, match="Pass projector='linear', width=6"):
        Align()(x, y)


def maps(*shape, seed):
    draw = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(*shape, generator=draw, dtype=torch.float64)
    return scores.masked_fill(~torch.ones(shape[2:], dtype=torch.bool).tril(), -torch.inf).softmax(
        3
    )


@pytest.mark.truth("a loop over the queries of maps of attention")
def test_cross_entropy_of_attentions_and_focus_on_a_region():
    x, y = maps(2, 3, 5, 5, seed=1), maps(2, 2, 5, 5, seed=2)
    mask = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5).clone()
    mask[1, :, 3:] = False  # padding of the second example
    pairs = [(b, q) for b, n in ((0, 5), (1, 3)) for q in range(1, n)]  # query 0 sees one key
    expected = [
        -float((y[b, h, q, : q + 1] * x[b, h, q, : q + 1].log()).sum())
        for b, q in pairs
        for h in range(2)
    ]
    own = x.clone().requires_grad_()
    value = Align("cross_entropy")(own, y, mask=mask)
    value.backward()
    assert value.item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)
    assert bool(present(own.grad).isfinite().all())
    mean = [
        -float((y[b, :, q, : q + 1].mean(0) * x[b, :, q, : q + 1].mean(0).log()).sum())
        for b, q in pairs
    ]
    value = Align("cross_entropy", heads="mean")(x, y, mask=mask)
    assert float(value) == pytest.approx(sum(mean) / len(mean), rel=1e-12)

    region = torch.tensor([[True, False, True, False, False], [False, False, True, True, False]])
    inside = [
        float(x[b, h, q, : q + 1][region[b, : q + 1]].sum())
        for b, q in pairs
        if bool(region[b, : q + 1].any())
        for h in range(3)
    ]
    value = Align("focus")(x, region, mask=mask)
    assert float(value) == pytest.approx(-sum(math.log(p) for p in inside) / len(inside), rel=1e-12)
    each = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    inside = [
        float(x[b, h, q, : q + 1][each[b, q, : q + 1]].sum())
        for b, q in pairs
        if bool(each[b, q, : q + 1].any())
        for h in range(3)
    ]
    value = Align("focus")(x, each, mask=mask)
    assert float(value) == pytest.approx(-sum(math.log(p) for p in inside) / len(inside), rel=1e-12)
    even = torch.full((1, 1, 3, 16), 1 / 16)
    assert float(Align("focus")(even, torch.arange(16)[None] < 4)) == pytest.approx(math.log(4))


def test_a_key_that_underflowed_is_not_one_that_is_hidden():
    x = torch.tensor([[[[1.0, 0.0, 0.0]]]])
    y = torch.tensor([[[[0.75, 0.25, 0.0]]]])
    mask = torch.tensor([[[[True, True, False]]]])
    expected = -0.25 * math.log(torch.finfo(torch.float32).tiny)
    assert float(Align("cross_entropy")(x, y, mask=mask)) == pytest.approx(expected)


@pytest.mark.truth("torch's KL divergence of a batch, and rows repeated as often as they weigh")
def test_distance_of_logits_with_weights_of_rows():
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 4, 5, generator=draw)
    own, its = (x / 3).log_softmax(1), (y / 3).log_softmax(1)
    expected = 9 * nn.functional.kl_div(own, its, log_target=True, reduction="batchmean")
    align = Align("kl", temperature=3.0)
    torch.testing.assert_close(align(x, y), expected)
    often = torch.tensor([0, 1, 1, 3])
    torch.testing.assert_close(
        align(x, y, weight=torch.tensor([1.0, 2.0, 0.0, 1.0])), align(x[often], y[often])
    )


@pytest.mark.truth("bilinear interpolation of images, then of places")
def test_rows_of_a_coarse_grid_against_a_finer_one_with_a_class_token():
    draw = torch.Generator().manual_seed(4)
    x, y = torch.randn(2, 3, 2, 3, generator=draw), torch.randn(2, 25, 4, generator=draw)
    align = Align("mse", "linear", width=4, grids=((2, 3), (4, 6)), prefix=1)
    rows = x.movedim(1, 3).flatten(0, 2)
    found = align(rows, y.flatten(0, 1))
    made = align.projector[0]
    wide = nn.functional.interpolate(x, size=(4, 6), mode="bilinear").movedim(1, 3).flatten(0, 2)
    expected = Align("mse")(made(wide), y[:, 1:].flatten(0, 1))  # a linear map: either order
    torch.testing.assert_close(found, expected)
    curved = Align("mse", "mlp", width=4, hidden=7, grids=((2, 3), (4, 6)), prefix=1)
    after = curved(rows, y.flatten(0, 1))
    curved.resample = "before"
    before = curved(rows, y.flatten(0, 1))
    torch.testing.assert_close(before, Align("mse")(curved.projector(wide), y[:, 1:].flatten(0, 1)))
    assert before.item() != pytest.approx(after.item(), rel=1e-6)
    with pytest.raises(InputError, match="expected 6 rows and 25 targets for each example"):
        align(rows[:5], y.flatten(0, 1))
