"""Emulated fine-tuning on tables and inside generate."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sonde.core import InputError
from sonde.edit import EmulatedFinetune
from sonde.tap import DecodeContext
from sonde.testing import causal_model, check

LARGE = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
TUNED = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
UNTUNED = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
MODEL = causal_model(1)


def stepped(p: Tensor, untuned: Tensor, *tuned: Tensor, **how: Any) -> Tensor:
    """Return the rule's probabilities on tables; each is moved by a constant that it must drop."""
    others = {f"tuned {i}": x.log() + i + 1 for i, x in enumerate(tuned)}
    rule = EmulatedFinetune((MODEL,) * len(tuned), MODEL, **how)
    return rule.step(p.log() - 3, DecodeContext(others | {"untuned": untuned.log() + 2})).exp()


@pytest.mark.truth("products and quotients of probabilities, divided by their sum")
@pytest.mark.parametrize("strength", [0.5, 1.0, -1.0])
def test_conditional_tables(strength):
    product = LARGE * (TUNED / UNTUNED) ** strength
    expected = product / product.sum(1, keepdim=True)
    found = stepped(LARGE, UNTUNED, TUNED, strength=strength, nucleus=1.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.truth("the tables themselves")
def test_equal_models_cancel():
    close = {"rtol": 1e-12, "atol": 0}
    torch.testing.assert_close(stepped(LARGE, TUNED, TUNED), LARGE, **close)
    torch.testing.assert_close(stepped(LARGE, LARGE, TUNED, nucleus=1.0), TUNED, **close)
    mixed = stepped(LARGE, UNTUNED, TUNED, TUNED, nucleus=1.0, weights=(0.3, 0.7))
    torch.testing.assert_close(mixed, stepped(LARGE, UNTUNED, TUNED, nucleus=1.0), **close)


def test_two_halves_are_one():
    half = stepped(LARGE, UNTUNED, TUNED, strength=0.5, nucleus=1.0)
    twice = stepped(half, UNTUNED, TUNED, strength=0.5, nucleus=1.0)
    whole = stepped(LARGE, UNTUNED, TUNED, nucleus=1.0)
    torch.testing.assert_close(twice, whole, rtol=1e-12, atol=0)


def test_tokens_outside_both_nuclei_are_not_shifted():
    large = torch.tensor([[0.50, 0.48, 0.01, 0.01]], dtype=torch.float64)
    tuned = torch.tensor([[0.02, 0.01, 0.96, 0.01]], dtype=torch.float64)
    found = stepped(large, UNTUNED[:1], tuned, nucleus=0.9)
    shift = found / large
    expected = tuned / UNTUNED[:1]
    torch.testing.assert_close(shift[:, 0] / shift[:, 3], expected[:, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(shift[:, 2] / shift[:, 3], expected[:, 2], rtol=1e-12, atol=0)


@pytest.mark.slow
def test_laws():
    check(EmulatedFinetune(MODEL, causal_model(2, width=8), strength=0.7, nucleus=0.8))


def test_what_is_refused():
    with pytest.raises(InputError, match=r"nucleus in \(0, 1\], got 0"):
        EmulatedFinetune(MODEL, MODEL, nucleus=0.0)
    with pytest.raises(InputError, match=r"got \(1.0,\) for 2 models"):
        EmulatedFinetune((MODEL, MODEL), MODEL, weights=(1.0,))
