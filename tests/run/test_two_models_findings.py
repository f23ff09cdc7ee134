"""The codes of ``sonde compare``: each with a planted fault and a healthy twin."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import sonde
from sonde.compress import RTN
from sonde.core.inputs import Model
from sonde.run.comparing.model_difference import model_difference
from sonde.run.comparing.two_models import RowSample, compare_models
from sonde.run.comparing.two_models_findings import model_findings

WIDTH = 32


def net() -> Any:
    torch.manual_seed(0)
    sizes = (24, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)
    return nn.Sequential(*(nn.Linear(*s) for s in sizes))


@torch.no_grad()
def nudged(module: Any) -> Any:
    new = copy.deepcopy(module)
    new[1].weight += 0.02 * torch.randn(new[1].weight.shape)
    return new


@torch.no_grad()
def turned(module: Any, matrix: Any) -> Any:
    """Return a net whose first layer is turned and whose second turns it back."""
    new = copy.deepcopy(module)
    new[0].weight.copy_(matrix @ module[0].weight)
    new[0].bias.copy_(matrix @ module[0].bias)
    new[1].weight.copy_(module[1].weight @ matrix.T)
    return new


def renumbered(module: Any) -> Any:
    return turned(module, torch.eye(WIDTH)[torch.randperm(WIDTH)])


def rotated(module: Any) -> Any:
    return turned(module, torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q)


def reset(module: Any) -> Any:
    new = copy.deepcopy(module)
    new[1].reset_parameters()
    return new


def rotated_and_reset(module: Any) -> Any:
    new = rotated(module)
    new[2].reset_parameters()
    return new


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "codes", "first"),
    [
        (copy.deepcopy, {"CMP001"}, "0:out"),
        (nudged, {"CMP002"}, "1:out"),
        (renumbered, {"CMP002", "CMP003"}, "0:out"),
        (rotated, {"CMP002", "CMP004"}, "0:out"),
        (rotated_and_reset, {"CMP002", "CMP004"}, "0:out"),
        (reset, {"CMP002", "CMP004"}, "1:out"),
    ],
)
def test_each_change_has_its_code_and_no_other(change, codes, first):
    base = net()
    x = torch.randn(400, 24, generator=torch.Generator().manual_seed(7))
    streams = [
        sonde.read(m, [{"x": row} for row in x], sites=["0", "1", "2"], check=False)
        for m in (base, change(base))
    ]
    one, two = (sonde.fit(RowSample(), s, progress=False) for s in streams)
    found = model_findings(compare_models(one, two, progress=False))
    assert {f.code for f in found} == codes
    assert {f.sites[0] for f in found} == {first}
    assert all(len(f.sentence) <= 240 for f in found)
    if change is rotated:
        assert found[-1].sentence.endswith("rotated.")
    if change is rotated_and_reset:
        assert found[-1].sentence.endswith("rotated (1), re-initialised or trained anew (1).")
    if change is nudged:
        assert found[0].sites == ("1:out", "2:out")


class Mixed(nn.Module):
    """Multiplies by a fixed matrix that is no weight."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.matrix = torch.randn(WIDTH, WIDTH, generator=draw) ** 3
        self.scale = scale

    def extra_repr(self) -> str:
        return f"scale={self.scale}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * (x @ self.matrix)


@pytest.mark.slow
def test_equal_bits_are_never_called_trained_anew() -> None:
    def wrapped(seed: int, scale: float) -> Any:
        layers = [*net()]
        return nn.Sequential(layers[0], Mixed(seed, scale), layers[1])

    base, other = wrapped(1, 1.0), wrapped(2, 3.0)
    x = torch.randn(400, 24, generator=torch.Generator().manual_seed(7))
    streams = [
        sonde.read(m, [{"x": row} for row in x], sites=["0", "1", "2"], check=False)
        for m in (base, other)
    ]
    one, two = (sonde.fit(RowSample(), s, progress=False) for s in streams)
    both = compare_models(one, two, progress=False)
    difference = model_difference(Model(base), Model(other))
    assert (difference.weights, difference.code, difference.tokenizer) == ((), ("1",), False)
    (said,) = [f.sentence for f in model_findings(both, difference) if f.code == "CMP004"]
    assert "trained anew" not in said
    assert said.endswith("All 4 weights are equal bit for bit; different: code or settings of 1.")
    assert len(said) <= 240
    moved = reset(net())
    difference = model_difference(Model(net()), Model(moved))
    assert difference.weights == ("1.weight", "1.bias")
    assert difference.code == ()


@pytest.mark.truth("the rounded weights and their distance from the plain ones")
def test_weights_of_packed_layers_are_compared_as_the_layers_use_them() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4)).eval()
    coarse, fine = RTN(bits=2, layers=("2",)), RTN(bits=8, layers=("0",))
    small = fine.plan(plain).fold(coarse.plan(plain).fold(plain))
    difference = model_difference(Model(plain), Model(small))
    assert (difference.n_weights, set(difference.weights)) == (6, {"0.weight", "2.weight"})
    assert [name for name, _ in difference.changes] == ["2.weight", "0.weight"]
    for name, change in difference.changes:
        before, layer = plain.get_parameter(name).detach(), small.get_submodule(name[0])
        after = (layer(torch.eye(layer.in_features)) - layer.bias).T.detach()
        assert change == pytest.approx(float((after - before).norm() / before.norm()), rel=0.02)
    again = model_difference(Model(small), Model(copy.deepcopy(small)))
    assert (again.weights, again.n_weights) == ((), 6)


def test_a_packed_conv1d_is_compared_with_its_transpose() -> None:
    plain = Conv1D(12, 12)
    small = nn.Sequential(copy.deepcopy(plain))
    small = RTN(bits=8).plan(small).fold(small)
    difference = model_difference(Model(nn.Sequential(plain)), Model(small))
    ((name, change),) = difference.changes
    assert name == "0.weight"
    assert change < 0.02


def test_weights_without_values_are_counted_as_not_compared() -> None:
    base, other = net(), net()
    other[1].weight = nn.Parameter(other[1].weight.to("meta"))
    difference = model_difference(Model(base), Model(other))
    assert (difference.weights, difference.n_unread) == ((), 1)
    assert difference.sentence().endswith("Without values in memory, not compared: 1 weight.")
