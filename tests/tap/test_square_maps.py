"""Maps as wide as their channels: which axis holds the units is shown by probe forward passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    SegformerConfig,
    SegformerForImageClassification,
)

import sonde
from sonde.core.edit import Add
from sonde.layers import Adapter
from sonde.tap import Tap, editing
from sonde.train import RateReduction

DIM = 8


def _convnext() -> nn.Module:
    sizes = {"hidden_sizes": [DIM, 12], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
    return ConvNextForImageClassification(ConvNextConfig(num_labels=3, **sizes))


def _segformer() -> nn.Module:
    sizes = {"hidden_sizes": [DIM, 12], "depths": [1, 1], "num_encoder_blocks": 2}
    more = {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]}
    config = SegformerConfig(num_labels=3, num_attention_heads=[1, 2], **sizes, **more)
    return SegformerForImageClassification(config)


@contextmanager
def _hooked(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _m, _a, output: change(output))
    yield
    handle.remove()


@pytest.mark.slow
@pytest.mark.truth("hooks by hand that know the axis of the units")
@pytest.mark.parametrize(
    ("build", "site", "axis"),
    [
        (_convnext, "convnext.encoder.stages.0.layers.0", 1),
        (_convnext, "convnext.encoder.stages.0.layers.0.layernorm", 3),
        (_segformer, "segformer.stages.0", 1),
    ],
)
def test_units_of_square_maps(build: Callable[[], Any], site: str, axis: int) -> None:
    torch.manual_seed(0)
    model = build().eval()
    for weight in model.parameters():  # the scale of a new ConvNeXt's branches is 1e-6
        weight.data += 0.2 * torch.randn_like(weight)
    x = torch.randn(4, 3, 32, 32)
    part = model.get_submodule(site)
    direction, states = torch.randn(DIM), list[Tensor]()
    with _hooked(part, lambda y: states.append(y) or y):
        plain = model(pixel_values=x).logits
    assert states[0].shape == (4, DIM, DIM, DIM)

    def on_units(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda y: change(y.movedim(axis, -1)).movedim(-1, axis)

    with _hooked(part, on_units(lambda y: y + direction)):
        expected = model(pixel_values=x).logits
    with editing(model, Add(direction), site):
        torch.testing.assert_close(model(pixel_values=x).logits, expected)
    means = states[0].movedim(axis, -1).mean((1, 2))
    with Tap(model, site, "mean") as tap:
        tap.run(pixel_values=x)
    torch.testing.assert_close(next(iter(tap.rows.values())), means)
    label = torch.tensor([0, 1, 0, 1])
    with sonde.training(model, {site: RateReduction()}, reducer="mean") as terms:
        model(pixel_values=x)
        torch.testing.assert_close(terms.loss(label=label), RateReduction()(means, label))
    layer = Adapter(DIM, 2)
    new = sonde.inserted(model, {site: layer})
    torch.testing.assert_close(new(pixel_values=x).logits, plain)
    for weight in layer.parameters():
        weight.data += torch.randn_like(weight)
    with _hooked(part, on_units(layer)):
        expected = model(pixel_values=x).logits
    torch.testing.assert_close(new(pixel_values=x).logits, expected)
    assert not torch.allclose(expected, plain, atol=1e-4)
