"""A probe leaves the model as it was, also where it fails, and says what it did not take."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sonde
from sonde.core.errors import SiteError, SondeError, SondeWarning
from sonde.core.inputs import Model
from sonde.detect import Mahalanobis
from sonde.tap import live_stream
from tap_inputs import Arrays

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))


class Counting(nn.Module):
    """Counts its forwards, draws a number, and fails at the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(5, 2)
        self.register_buffer("seen", torch.zeros(1))
        self.layers[0].register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        for layer in self.layers:
            x = layer(x) + torch.rand(1)
        return self.head(self.norm(x))


def snapshot(net: nn.Module) -> list[object]:
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), m.training)
        for name, m in net.named_modules()
    ]
    held = [*net.named_parameters(), *net.named_buffers()]
    tensors = [(n, tuple(x.shape), x.requires_grad, x.detach().numpy().tobytes()) for n, x in held]
    state: Any = np.random.get_state()  # noqa: NPY002
    _, keys, *rest = state
    # The shape checks of these tests draw from Python's numbers: tests/test_generators.py has them.
    return [hooks, tensors, keys.tobytes(), rest, torch.get_rng_state().numpy().tobytes()]


CALLS = {
    "read": lambda net: list(sonde.read(net, [*X])),
    "schema": lambda net: sonde.read(net, [*X]).schema,
    "fit": lambda net: sonde.fit([Mahalanobis()], sonde.read(net, [*X])),
    "scan": lambda net: sonde.scan(net, [*X]),
    "no site": lambda net: sonde.read(net, [*X], sites="nothing").schema,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_raises_leaves_the_model(call):
    net = Counting().train()
    before = snapshot(net)
    with pytest.raises(SondeError):
        CALLS[call](net)
    assert snapshot(net) == before


def test_lazy_layers_that_never_ran_are_refused():
    """Their weights would get the shape of a probe: of inputs twice as wide."""
    net: Any = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(SiteError, match=r"'0\.weight' of a lazy layer.*Run the model once"):
        _ = sonde.read(net, [*X]).schema
    assert nn.parameter.is_lazy(net[0].weight)
    net(X)
    assert [s.dim for s in sonde.read(net, [*X]).schema] == [4, 4, 2]


class Forgiving(nn.Module):
    """Takes another branch where its own fails, as at a size that the data never have."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(6, 3), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.own(x)
        except RuntimeError:
            return self.other(x[:, :1])


def test_an_error_that_a_model_catches_ends_the_probe_at_that_size():
    stream = live_stream(Model(Forgiving()), Arrays(X), "own")
    assert stream.probe.change.kind == "none"
    assert stream.probe.resized is None
    assert set(stream.probe.trace) == {"", "own"}


class Remembering(nn.Module):
    """Adds what it has seen before."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("past", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.past += x.mean(0).abs() + 1
        return self.fc(x + self.past)


def test_a_state_is_not_told_as_chance():
    with pytest.warns(SondeWarning, match="keeps a state from one forward pass to the next"):
        list(sonde.read(Remembering().eval(), [*X], sites="fc"))


class Paired(nn.Module):
    """Returns something else first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean(1, keepdim=True), self.fc(x)


def test_outputs_that_are_not_read_are_named():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Paired(), Paired()])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)[1]
            return x

    stream = sonde.read(Net(), [*X])
    assert [s.dim for s in stream.schema] == [1, 1]
    said = {one.site: one.reason for one in stream.left_out}
    assert said["layers.0:out.1"] == "the module returns 2 outputs, and the first, '0', is read."
    (left,) = sonde.read(Net(), [*X], sites="layers.1").left_out
    assert left.site == "layers.1:out.1"
    assert [s.dim for s in sonde.read(Net(), [*X], sites="layers.*:out.1").schema] == [6, 6]
