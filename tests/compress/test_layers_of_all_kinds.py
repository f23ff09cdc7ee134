"""Layers that are no plain linear layer: which are packed, which are left alone, which refused."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.backends import mha
from torch.nn.utils import parametrizations, remove_weight_norm, spectral_norm, weight_norm
from transformers import FalconConfig, FalconForCausalLM

import sonde
from sonde.compress import GPTQ, RTN, QuantLinear, layer_grams
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.tap.hand.recording import intercepted

IDS = torch.tensor([[5, 9, 33, 2, 71], [8, 8, 1, 60, 12]])


class Halved(nn.Linear):
    """Has a weight as a linear layer, and does something else with it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return half of the product."""
        return 0.5 * super().forward(input)


@pytest.mark.truth("a plain torch copy with the unpacked weights")
def test_linear_layers_of_classes_of_their_own_are_packed():
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    net = FalconForCausalLM(FalconConfig(vocab_size=80, **small)).eval()
    plan = RTN(bits=4, group=16).plan(net)
    new: Any = plan.fold(net)
    names = {name for name, part in new.named_modules() if isinstance(part, QuantLinear)}
    assert {n.rpartition(".")[2] for n in names} == {
        "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}  # fmt: skip
    twin = copy.deepcopy(net)
    for name, change in plan.changes.items():
        twin.get_parameter(name).data = change.of(twin.get_parameter(name))
    with torch.no_grad():
        torch.testing.assert_close(new(IDS).logits, twin(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_layer_that_does_more_than_multiply_is_left_alone():
    net = nn.Sequential(nn.Linear(8, 6), Halved(6, 4))
    assert set(RTN().plan(net).changes) == {"0.weight"}


@pytest.mark.truth("the moments of what forward hooks see")
def test_torchs_fused_encoder_is_off_while_calibrating():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    x, seen = torch.randn(12, 5, 16), []
    handle = net.layers[1].linear2.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        net(x)
    handle.remove()
    data = open_inputs(sonde.Model(net), x)
    names = ("layers.*.linear*",)
    found = layer_grams(net, data, layers=names, exact=True).of_layers(["layers.1.linear2"])
    rows = seen[0].flatten(0, 1).double()
    assert found.n == 60
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    assert mha.get_fastpath_enabled()
    with intercepted([net], lambda *a: 0):
        assert not mha.get_fastpath_enabled()
    assert mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "norm",
    [weight_norm, spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm],
)
def test_a_weight_that_is_made_at_each_run_stays_and_is_named(norm):
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 3)).eval()
    data = open_inputs(sonde.Model(net), torch.randn(24, 8))
    with pytest.warns(
        sonde.SondeWarning, match="^0 is not compressed: it has a weight that is made"
    ):
        plan = GPTQ().plan(net, {"calibration": data})
    assert set(plan.changes) == {"2.weight"}
    x = torch.randn(5, 8)
    assert torch.equal(plan.fold(net)[0](x), net[0](x))
    with pytest.raises(InputError, match="0 has a weight that is made from others at each run"):
        RTN(layers=("0",)).plan(net)
    if norm is weight_norm:
        remove_weight_norm(net[0])
        assert set(RTN().plan(net).changes) == {"0.weight", "2.weight"}


@pytest.mark.truth("plain rounding of the layer that no row reached")
def test_a_layer_that_no_row_reaches_is_rounded_as_if_all_inputs_counted_alike():
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asked, self.never = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.asked(x)

    net = Two().eval()
    data = open_inputs(sonde.Model(net), torch.randn(40, 16) * torch.arange(1, 17))
    with pytest.warns(sonde.SondeWarning, match="no row that is finite reaches never"):
        plan = GPTQ(bits=3, group=8).plan(net, {"calibration": data})
    plain = RTN(bits=3, group=8).plan(net)
    made, rounded = ({n: p.changes[n].factors() or p.fold(net).get_submodule(n[:-7]).values()
                      for n in p.changes} for p in (plan, plain))  # fmt: skip
    assert torch.equal(made["never.weight"], rounded["never.weight"])
    assert not torch.equal(made["asked.weight"], rounded["asked.weight"])
    both = layer_grams(net, data, layers=("asked",)).merge(
        layer_grams(net, data, layers=("asked",))
    )
    with pytest.warns(sonde.SondeWarning):
        one = layer_grams(net, data)
    assert one.merge(one).of_layers(["asked"]).n == both.of_layers(["asked"]).n == 80
    with pytest.raises(InputError, match="none that is finite at never"):
        GPTQ(layers=("never",)).plan(net, {"calibration": data})


@pytest.mark.parametrize("where", ["meta", "disk"])
def test_a_model_whose_weights_are_elsewhere_is_refused_before_any_work(where, tmp_path):
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3)).eval()
    if where == "meta":
        net = net.to("meta")
    else:
        accelerate = pytest.importorskip("accelerate")
        accelerate.disk_offload(net, tmp_path, execution_device=torch.device("cpu"))
        assert net(torch.randn(2, 8)).shape == (2, 3)
    data = open_inputs(sonde.Model(nn.Linear(8, 3)), torch.randn(24, 8))
    for method in (RTN(), GPTQ()):
        with pytest.raises(InputError, match=r"plan: expected a model with its weights in memory"):
            method.plan(net, {"calibration": data} if method.reads() else None)
