"""Every attribution against the laws of explainers, and twins that break them."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import sonde
import sonde.explain
from sonde.core import Explainer, Result
from sonde.explain import (
    Attributor,
    ExpectedGradients,
    Shapley,
    SmoothGrad,
)
from sonde.explain.attention import AttentionMap
from sonde.testing import ExplainerCase, check, laws_of

FAMILY: list[Any] = [getattr(sonde.explain, name) for name in sonde.explain.__all__]
KINDS: list[Any] = [k for k in FAMILY if isinstance(k, type) and issubclass(k, Attributor)]
MADE = {
    ExpectedGradients: ExpectedGradients(torch.zeros(3, 4, 4, 4), n=6),
    Shapley: Shapley(n_orders=1),
    SmoothGrad: SmoothGrad(n=6),
}
PER_PLACE = [k for k in KINDS if k is not Attributor and not issubclass(k, AttentionMap)]
ATTENTIONS = [k for k in KINDS if issubclass(k, AttentionMap)]


@pytest.mark.parametrize("kind", PER_PLACE, ids=lambda k: k.__name__)
def test_attributions_at_a_layer(kind):
    check(ExplainerCase(MADE.get(kind) or kind(), asked={"site": "0"}))


@pytest.mark.parametrize("kind", ATTENTIONS, ids=lambda k: k.__name__)
def test_maps_of_attention(kind):
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    module = sonde.load("sonde:digits").module
    case = ExplainerCase(kind(), module, x, {"site": "vit.layers.1"})
    check(case, without={"inputs", "output", "half"})


@dataclass(frozen=True)
class Slopes(Explainer):
    """Gradients, with a fault."""

    fault: str = ""

    def explain(self, model: Any, inputs: Any, *, objective: Any = None) -> Result:
        several = inputs if isinstance(inputs, tuple) else (inputs,)
        x = several[0].clone().requires_grad_(True)
        rest = several[1:]
        if self.fault == "inputs":
            rest = tuple(y[:1].expand_as(y) for y in rest)
        if self.fault == "untouched":
            model.register_forward_hook(lambda *_: None)
        out = model(x, *rest)
        if isinstance(out, dict):
            name = "aside" if self.fault == "output" else objective.output
            out = out[name]
        (slope,) = torch.autograd.grad(out[:, 0].float().sum(), x)
        value = slope.float()
        if self.fault == "alone":
            value = value - value.mean(0)
        if self.fault == "again":
            value = value + torch.rand(())
        if self.fault == "half" and x.dtype == torch.bfloat16:
            value = value / 2
        return Result(value=value, n=len(x), direction="none")


NAMES = ("alone", "again", "untouched", "half", "inputs", "output")


@pytest.mark.parametrize("fault", NAMES)
def test_each_law_holds_for_a_twin_without_its_fault(fault):
    (law,) = [x for x in laws_of(ExplainerCase(Slopes(fault))) if x.name == fault]
    law.hold(ExplainerCase(Slopes()))
