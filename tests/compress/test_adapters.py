"""Rewrites of a model with an adapter leave the adapter in full precision, and say so."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import sonde.compress
from sonde.compress import RTN
from sonde.core import Model, SondeError, SondeWarning
from sonde.testing.rewrite_laws import examples_for
from sonde.weights import Rewrite

FAMILY: list[Any] = [getattr(sonde.compress, name) for name in sonde.compress.__all__]
METHODS = [
    kind(**kind.examples[0])
    for kind in FAMILY
    if isinstance(kind, type) and issubclass(kind, Rewrite) and kind is not Rewrite
]


def adapted(dora: bool = False) -> nn.Module:
    """Return a net with an adapter at two of its four linear layers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48),
        nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip
    config = LoraConfig(r=4, target_modules=["1", "5"], use_dora=dora)
    made: nn.Module = get_peft_model(net, config)  # type: ignore[arg-type]
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return made.eval()


def of_adapter(module: nn.Module) -> dict[str, Tensor]:
    return {n: x.clone() for n, x in module.state_dict().items() if "lora_" in n}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # also that the adapter is left out
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.truth("the adapter's own bytes before")
def test_every_rewrite_leaves_an_adapter_as_it_is_or_refuses(method: Any, dora: bool):
    module = adapted(dora)
    before, model = of_adapter(module), Model(module)
    try:
        plan = method.plan(model, examples_for(method, model))
        after = plan.fold(model)
    except SondeError as error:
        print(error)
        return
    kept = of_adapter(after)
    assert kept.keys() == before.keys()
    assert all(torch.equal(kept[name], x) for name, x in before.items())
    assert bool(after(torch.randn(3, 64)).isfinite().all())


def test_an_adapter_is_said_to_be_left_out_and_compressed_once_merged():
    module = adapted()
    with pytest.warns(SondeWarning, match=r"lora_A.*merge_and_unload"):
        plan = RTN(bits=4).plan(Model(module))
    assert not [name for name in plan.changes if "lora_" in name]
    x = torch.randn(5, 64)
    given = module(x)
    merged = module.merge_and_unload()
    torch.testing.assert_close(merged(x), given)
    assert len(RTN(bits=4).plan(Model(merged)).changes) == 4
