from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from findings._nets import deep_relu, noise, tensors, tokens
from findings._texts import LENGTHS, gpt2, llama
from sonde.findings.self_check import self_check
from sonde.tap.streams.difference import TAU, difference


@pytest.mark.truth("rms of the noise over the standard deviation of the rows")
def test_difference_is_noise_over_spread() -> None:
    a = noise(500, 20).double()
    b = a + 0.01 * noise(500, 20, seed=1).double()
    assert difference(a, b, 2.0**-24) == pytest.approx(0.01, rel=0.05)


def test_one_huge_unit_does_not_hide_the_others() -> None:
    a = noise(500, 20).double()
    a[:, 0] *= 1e4
    b = a.clone()
    b[:, 1:] += 0.1 * noise(500, 19, seed=1).double()
    assert difference(a, b, 2.0**-24) == pytest.approx(0.1, rel=0.1)


def test_rounding_of_rows_that_hardly_differ_is_no_difference() -> None:
    a = 1.0 + 1e-7 * noise(500, 20).double()
    b = a + 6e-8 * noise(500, 20, seed=1).double().sign()
    assert difference(a, b, 2.0**-24) < TAU


def test_identical_readings_and_rows_that_are_not_finite() -> None:
    a = noise(10, 4).double()
    assert difference(a, a.clone(), 2.0**-24) == 0.0
    b = a.clone()
    b[3, 1] = torch.nan
    assert difference(b, b.clone(), 2.0**-24) == 0.0


def test_a_deep_net_that_squeezes_rows_is_stable() -> None:
    found = self_check(tensors(deep_relu(20, 64, None), noise(40, 64)))
    assert found.repeat is not None
    assert found.repeat.worst == 0
    assert found.company is not None
    assert found.company.worst < found.tau
    assert found.reasons["padding"] == "inputs are not texts"


def test_random_state_is_left_as_it_was() -> None:
    stream = tensors(deep_relu(2, 16, None), noise(40, 16))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    self_check(stream)
    assert torch.equal(torch.rand(4), expected)


class Sized(nn.Module):
    """Adds one learned vector to each of exactly so many tokens."""

    def __init__(self, length: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(61, 16)
        self.places = nn.Parameter(torch.randn(length, 16))
        self.blocks = nn.ModuleList([nn.Linear(16, 16) for _ in range(2)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids) + self.places
        for block in self.blocks:
            x = x + block(x)
        return x


def test_a_model_for_one_length_is_read_whole() -> None:
    found = self_check(tokens(Sized(100).eval(), [100] * 20))
    assert found.repeat is not None
    assert found.repeat.worst == 0
    assert found.company is not None
    assert found.company.worst < found.tau
    assert found.n_tokens == 8 * 100
    assert "rejected shorter texts" in found.reasons["padding"]


@pytest.mark.truth("forwards of the model, counted by a hook of the test")
@pytest.mark.parametrize(
    ("make", "side", "deep", "expected"),
    [
        (llama, "right", False, 6),
        (llama, "left", False, 6),
        (gpt2, "left", False, 13),
        (gpt2, "right", True, 14),
    ],
)
def test_few_forwards(make: Any, side: str, deep: bool, expected: int) -> None:
    module, count = make(), []  # gpt2 reads its padding: six more with copies of rows
    processor = SimpleNamespace(padding_side=side, pad_token_id=0)
    stream = tokens(module, LENGTHS, processor=processor)
    assert stream.kinds
    handle = module.register_forward_pre_hook(lambda *_: count.append(1))
    self_check(stream, deep=deep)
    handle.remove()
    assert len(count) == expected
