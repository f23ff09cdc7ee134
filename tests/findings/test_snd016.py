from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.distributions import StudentT

from findings._nets import (
    Patches,
    assert_clear,
    assert_raised,
    checked,
    evidence_of,
    noise,
    tensors,
)
from sonde.core.stream import Stream
from sonde.findings.codes.snd016 import SND016
from sonde.findings.codes.snd023 import SND023


class Spiked(Patches):
    """Adds a number to unit 5 after block 1: everywhere, or at position 0 alone."""

    def __init__(self, amount: float, first_only: bool) -> None:
        super().__init__(dim=16, depth=3)
        self.amount, self.first_only = amount, first_only

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 0:
                spike = torch.zeros_like(x)
                spike[:, : 1 if self.first_only else None, 5] = self.amount
                x = x + spike
        return self.head(x.mean(dim=1))


def stream(module: nn.Module, n: int = 64) -> Stream:
    return tensors(module.eval(), noise(n * 6, 16).reshape(n, 6, 16))


def test_a_bias_on_one_unit_is_massive_and_called_a_bias() -> None:
    finding = assert_raised(checked(SND016(), stream(Spiked(3000.0, False))), "note")
    assert finding.common
    assert finding.units == ("5",)
    assert "acts as a bias" in finding.sentence
    assert set(finding.sites) == {"blocks.1", "blocks.2"}


def test_a_spike_at_one_position_is_named_with_its_position() -> None:
    finding = assert_raised(checked(SND016(), stream(Spiked(20000.0, True))), "note")
    assert "Unit 5, position 0" in finding.sentence
    assert "bias" not in finding.sentence


def test_a_bias_makes_a_norm_long_but_no_rows_alike() -> None:
    check = checked(SND023(), stream(Spiked(3000.0, False)))
    assert check.state == "clear"


def test_an_outlier_dimension() -> None:
    x = noise(200, 100)
    x[:, 17] *= 50
    finding = assert_raised(checked(SND016(), Stream.of(x)), "note")
    assert finding.units == ("17",)
    assert "96 % of the mean square" in finding.sentence


def test_warning_where_rounding_eats_the_same_site() -> None:
    x = noise(200, 40)
    x[:, 3] += 3000
    assert_raised(checked(SND016(), Stream.of(x.bfloat16())), "warning")


def test_heavy_tails_small_sites_and_dead_units_are_clear() -> None:
    torch.manual_seed(1)
    assert_clear(checked(SND016(), Stream.of(StudentT(3.0).sample((500, 64)))))
    small = noise(200, 24)
    small[:, 0] *= (0.3 / 0.7 * 23) ** 0.5
    assert_clear(checked(SND016(), Stream.of(small)))
    dead = noise(200, 50)
    dead[:, :30] = 0
    assert_clear(checked(SND016(), Stream.of(dead)))


def test_units_that_only_the_other_data_has_are_a_warning() -> None:
    x = noise(200, 40)
    y = x.clone()
    y[:, 3] += 3000
    data = evidence_of(Stream.of(x))
    other = {s.schema.key: s for s in evidence_of(Stream.of(y)).sites}
    check = SND016().check(replace(data, versus=SimpleNamespace(other_sites=other)))
    finding = assert_raised(check, "warning")
    assert "only in the other data" in finding.sentence
    same = {s.schema.key: s for s in data.sites}
    assert_clear(SND016().check(replace(data, versus=SimpleNamespace(other_sites=same))))
