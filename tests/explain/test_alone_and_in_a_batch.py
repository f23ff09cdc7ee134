"""A row is explained as in a batch: beside many rows, beside longer texts, and not at all."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import models
import sonde.explain
from sonde.core import InputError
from sonde.explain import Attributor, Baseline, ExpectedGradients, SmoothGrad
from sonde.explain.class_activation import ClassActivation

DRAW = torch.Generator().manual_seed(0)
IDS = torch.randint(3, 50, (3, 7), generator=DRAW)
LENGTHS = (7, 4, 2)
GIVEN = {"baseline": Baseline("zero"), "n_orders": 1, "n": 3, "steps": 3}
FAMILY: list[Any] = [getattr(sonde.explain, name) for name in sonde.explain.__all__]
KINDS = [k for k in FAMILY if isinstance(k, type) and issubclass(k, Attributor) and k != Attributor]


def made(kind: Any, length: int) -> Any:
    given = GIVEN | {"references": torch.linspace(-1, 1, 2)[:, None, None].expand(2, length, 32)}
    return kind(**{f.name: given[f.name] for f in dataclasses.fields(kind) if f.name in given})


@pytest.mark.truth("each row by itself")
@pytest.mark.parametrize("method", [SmoothGrad(), ExpectedGradients(torch.randn(9, 7))])
def test_a_row_beside_many_rows(method):
    """More rows than fit into a forward with all draws: they are cut, and the draws stay."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(20, 7)
    found = method.explain(net, x).value
    for i in (0, 19):
        torch.testing.assert_close(method.explain(net, x[i : i + 1]).value[0], found[i])


@pytest.mark.truth("each text by itself, without padding")
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_beside_longer_ones(kind, side):
    net = models.gpt2()
    mask = torch.tensor([[1] * n + [0] * (7 - n) for n in LENGTHS])
    mask = mask.flip(1) if side == "left" else mask
    inputs = {
        "input_ids": IDS,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }
    at = {"site": "transformer.h.0"} if issubclass(kind, ClassActivation) else {}
    found = made(kind, 7).explain(net, inputs, **at).value
    size = found.abs().max()
    for i, n in enumerate(LENGTHS):
        real = mask[i].bool()
        alone = made(kind, n).explain(net, {"input_ids": IDS[i : i + 1, real]}, **at).value[0]
        torch.testing.assert_close(found[i, real], alone, rtol=1e-3, atol=float(1e-5 * size))
        assert (found[i, ~real] == 0).all()


def test_no_row_is_refused():
    with pytest.raises(InputError, match="at least one example"):
        SmoothGrad().explain(models.gpt2(), {"input_ids": IDS[:0]})
