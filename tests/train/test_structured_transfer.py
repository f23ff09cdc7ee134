"""Structured transfer: by a loop over places and layers, the teacher itself, gradients."""

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.train import StructuredTransfer


def drawn(*shapes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes]


@pytest.mark.truth("loops over places, channels and pairs of layers")
def test_the_value_is_that_of_loops():
    student = drawn((2, 3, 4, 4), (2, 4, 2, 2))
    teacher = drawn((2, 5, 4, 4), (2, 6, 2, 2), seed=1)
    loss = StructuredTransfer([(3, 5), (4, 6)]).double().eval()
    own = [m(x).detach() for m, x in zip(loss.maps, student, strict=True)]
    intra = 0.0
    for x, y in zip(own, teacher, strict=True):
        cos = [
            float(x[r, :, h, w] @ y[r, :, h, w] / (x[r, :, h, w].norm() * y[r, :, h, w].norm()))
            for r in range(2) for h in range(x.shape[2]) for w in range(x.shape[3])
        ]  # fmt: skip
        intra += (1 - sum(cos) / len(cos)) / 2

    def fsp(a, b):
        a = torch.stack([a[:, :, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].mean((2, 3))
                         for h in range(2) for w in range(2)], 2)  # fmt: skip
        return torch.einsum("rap,rbp->rab", a, b.flatten(2)) / 4

    wanted, found = fsp(*teacher), fsp(*own)
    inter = float((found - wanted).square().sum() / wanted.square().sum())
    assert loss(student, teacher).item() == pytest.approx(intra + inter, rel=1e-9)


def test_the_teacher_itself_loses_nothing_and_parts_start_at_their_weights():
    maps = drawn((2, 3, 4, 4), (2, 3, 4, 4))
    same = StructuredTransfer([(3, 3), (3, 3)]).double().eval()
    for layer in same.maps:
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert same(maps, maps).item() == pytest.approx(0.0, abs=1e-12)
    loss = StructuredTransfer([(3, 5), (4, 6)], inside=2.0, between=0.5).double()
    student = drawn((2, 3, 4, 4), (2, 4, 2, 2))
    teacher = [t.requires_grad_() for t in drawn((2, 5, 4, 4), (2, 6, 2, 2), seed=1)]
    value = loss(student, teacher)
    assert value.item() == pytest.approx(2.5)
    value.backward()
    assert teacher[0].grad is None
    assert loss.maps[0].weight.grad.abs().sum() > 0


@pytest.mark.essential
@pytest.mark.truth("planted: a student whose maps are linear mixtures of the teacher's")
def test_maps_that_carry_the_teacher_reach_zero():
    torch.manual_seed(0)
    teacher = [t.float() for t in drawn((8, 4, 4, 4), (8, 4, 2, 2))]
    mix = torch.randn(6, 4)
    student = [torch.einsum("sc,rchw->rshw", mix, t) for t in teacher]
    loss = StructuredTransfer([(6, 4), (6, 4)])
    optimiser = torch.optim.Adam(loss.parameters(), 0.02)
    for _ in range(500):
        optimiser.zero_grad()
        loss(student, teacher).backward()
        optimiser.step()
    assert loss(student, teacher).item() < 0.05


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StructuredTransfer([(3, 3)]), "two if the weight between is above 0"),
        (
            lambda: StructuredTransfer([(3, 3)], between=0)(drawn((1, 3, 2, 2)), []),
            "1 feature maps of",
        ),
    ],
)
def test_what_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
