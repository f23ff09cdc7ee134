"""What holds for every attribution: the model stays, rows do not meet, no_grad changes nothing."""

import dataclasses
from typing import Any

import pytest
import torch

import models
import sonde
import sonde.explain
from sonde.core import InputError
from sonde.explain import (
    Attribution,
    AttributionPatching,
    Attributor,
    Baseline,
    ConceptBottleneck,
    EdgeAttribution,
    Objective,
)

DRAW = torch.Generator().manual_seed(0)
X = 2 * torch.rand(4, 1, 8, 8, generator=DRAW) - 1
WHY, SITE = Objective(target=3), "vit.layers.1"
GIVEN = {
    "baseline": Baseline("zero"),
    "special": (0,),
    "steps": 4,
    "n_orders": 1,
    "n": 4,
    "references": torch.zeros(3, 17, 64),
}
FAMILY: list[Any] = [getattr(sonde.explain, name) for name in sonde.explain.__all__]
KINDS: list[Any] = [
    kind
    for kind in FAMILY
    if isinstance(kind, type) and issubclass(kind, Attributor) and kind is not Attributor
]
METHODS = [
    kind(**{f.name: GIVEN[f.name] for f in dataclasses.fields(kind) if f.name in GIVEN})
    for kind in KINDS
]


@pytest.fixture(scope="module")
def model():
    return sonde.load("sonde:digits")


def value(found: Attribution) -> torch.Tensor:
    return torch.as_tensor(found.value).float()


@pytest.mark.truth("each example explained by itself")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_laws_of_attributions(model, method):
    module = model.module
    before, state = {n: p.clone() for n, p in module.state_dict().items()}, torch.get_rng_state()
    module.train()
    try:
        found = method.explain(model, X, objective=WHY, site=SITE)
        assert module.training
    finally:
        module.eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) for n, p in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    with torch.no_grad():
        logits = module(X).logits
    torch.testing.assert_close(found.objective, logits[:, 3], rtol=1e-4, atol=1e-4)
    alone = torch.cat([value(method.explain(model, x[None], objective=WHY, site=SITE)) for x in X])
    torch.testing.assert_close(alone, value(found), rtol=1e-4, atol=1e-4)
    turned = value(method.explain(model, X.flip(0), objective=WHY, site=SITE)).flip(0)
    torch.testing.assert_close(turned, value(found), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        without = method.explain(model, X, objective=WHY, site=SITE)
    torch.testing.assert_close(value(without), value(found), rtol=1e-4, atol=1e-4)
    assert without.flags == found.flags
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        method.explain(model, X, objective=WHY, site=SITE)


@pytest.mark.parametrize("method", [AttributionPatching(ig_steps=2), EdgeAttribution()])
def test_patches_by_gradients_are_the_same_within_no_grad(method):
    net = models.gpt2()
    clean, corrupt = torch.randint(3, models.VOCABULARY, (2, 3, 5), generator=DRAW)
    why = Objective("margin", target=3, other=4)
    wanted = torch.as_tensor(method.explain(net, clean, corrupt=corrupt, objective=why).value)
    with torch.no_grad():
        found = torch.as_tensor(method.explain(net, clean, corrupt=corrupt, objective=why).value)
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(found, wanted)
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        method.explain(net, clean, corrupt=corrupt, objective=why)


def test_a_bottleneck_is_trained_within_no_grad():
    rows, label = torch.randn(20, 4, generator=DRAW), torch.arange(20) % 2
    wanted = ConceptBottleneck(steps=5).fit(rows, torch.eye(4), label)
    with torch.no_grad():
        found = ConceptBottleneck(steps=5).fit(rows, torch.eye(4), label)
    assert torch.equal(found.weight, wanted.weight)
