import torch
from torch import Tensor, nn
from torch.nn import functional

from findings._nets import assert_clear, assert_raised, checked, evidence_of, noise, tensors
from sonde.findings.codes.snd004 import SND004


class Dropping(nn.Module):
    """A functional dropout between two of three layers; always on, or only in training."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            if i == 1:
                x = functional.dropout(x, 0.1, training=True if self.always else self.training)
        return x


def test_a_dropout_that_is_always_on() -> None:
    evidence = evidence_of(tensors(Dropping(True).eval(), noise(40, 16)))
    finding = assert_raised(SND004().check(evidence), "error")
    assert finding.sites == ("layers.2",)
    assert 0.2 < finding.figure.value < 1.5


def test_it_is_a_note_where_chance_was_declared() -> None:
    evidence = evidence_of(tensors(Dropping(True).eval(), noise(40, 16)), stochastic=True)
    assert_raised(SND004().check(evidence), "note")


def test_a_dropout_that_follows_the_mode() -> None:
    stream = tensors(Dropping(False).eval(), noise(40, 16))
    assert assert_clear(checked(SND004(), stream)).value == 0.0
    training = tensors(Dropping(False).train(), noise(40, 16))
    assert_clear(checked(SND004(), training))
    assert training.model.module.training
