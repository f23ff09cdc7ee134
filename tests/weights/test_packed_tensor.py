"""What code that reads ``layer.weight`` gets of a packed layer: models that do so answer alike."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import sonde
from sonde.compress import RTN, BitStack, LowRankWeights, WeightCodebook
from sonde.core.errors import StateError
from sonde.core.repacking import count_weights
from sonde.data import open_inputs
from sonde.run.compressing.document import held_bytes
from sonde.weights import RewritePlan
from sonde.weights.packed_tensor import PackedTensor

IDS = torch.tensor([[5, 9, 33, 2, 71], [8, 8, 1, 60, 12]])


def moved(net: Any) -> Any:
    """Return a model whose biases and norms are at no special point."""
    draw = torch.Generator().manual_seed(3)
    for x in net.parameters():
        x.data += 0.05 * torch.randn(x.shape, generator=draw)
    return net.eval()


def t5() -> Any:
    torch.manual_seed(0)
    small = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=80, decoder_start_token_id=0, **small))


def mamba() -> Any:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4, "time_step_rank": 8}
    return MambaForCausalLM(MambaConfig(vocab_size=80, **small))


def encoder() -> Any:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    return nn.Sequential(nn.Embedding(80, 32), nn.TransformerEncoder(layer, 2))


def plainly(net: nn.Module, plan: RewritePlan) -> Any:
    """Return a copy of a model with each changed weight written out, in torch alone."""
    new = copy.deepcopy(net)
    for name, change in plan.changes.items():
        owner = new.get_submodule(name.rpartition(".")[0])
        owner.weight = nn.Parameter(change.of(owner.weight))
    return new


def answer(net: Any) -> torch.Tensor:
    with torch.no_grad():
        if hasattr(net, "config") and net.config.is_encoder_decoder:
            return net(input_ids=IDS, decoder_input_ids=IDS[:, :3]).logits
        found = net(IDS)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.truth("a plain torch copy with the unpacked weights")
@pytest.mark.parametrize("make", [t5, mamba, encoder])
@pytest.mark.parametrize("bits", [3, 8])
def test_models_that_read_weights_answer_as_with_plain_layers(make, bits):
    net = moved(make())
    plan = RTN(bits=bits, group=16).plan(net)
    new = plan.fold(net)
    torch.testing.assert_close(answer(new), answer(plainly(net, plan)), rtol=1e-4, atol=1e-4)
    assert count_weights(new) == count_weights(net)


@pytest.mark.slow
@pytest.mark.truth("a plain torch copy with the unpacked weights")
@pytest.mark.parametrize("method", [LowRankWeights(remove=0.4), BitStack(), WeightCodebook()])
def test_other_packed_forms_have_a_weight_too(method):
    net = moved(encoder())
    data = open_inputs(sonde.Model(net), IDS)
    with pytest.warns(
        sonde.SondeWarning, match="no row that is finite reaches 1.layers.0.self_att"
    ):
        plan = method.plan(net, {"calibration": data})
    new = plan.fold(net)
    torch.testing.assert_close(answer(new), answer(plainly(net, plan)), rtol=1e-4, atol=1e-4)


@pytest.mark.truth("the unpacked weight")
def test_a_packed_weight_reads_as_a_tensor_and_takes_no_memory():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 24))
    new: Any = RTN(bits=4, group=16).plan(net).fold(net)
    before = held_bytes(new)
    lazy, wanted = new[0].weight, new[0].values()
    assert isinstance(lazy, PackedTensor)
    assert lazy.shape == (24, 40)
    x = torch.randn(3, 40)
    for found, true in (
        (lazy[5], wanted[5]),
        (lazy[-1], wanted[-1]),
        (lazy[3:7], wanted[3:7]),
        (lazy[torch.tensor([[2, 0], [5, 5]]).flatten()], wanted[[2, 0, 5, 5]]),
        (lazy.T[:, 2], wanted[2]),
        (x @ lazy.T, x @ wanted.T),
        (functional.linear(x, lazy), x @ wanted.T),
        (torch.from_numpy(lazy.numpy()), wanted),
        (functional.embedding(torch.tensor([[1, 7]]), lazy), wanted[[1, 7]][None]),
        (new.to(torch.bfloat16)[0].weight.float(), wanted.bfloat16().float()),
    ):
        torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-5)
    assert lazy.dtype == torch.float32
    assert new[0].weight.dtype == torch.bfloat16
    assert held_bytes(new) <= before
    x.requires_grad_()
    functional.linear(x, lazy).sum().backward()
    torch.testing.assert_close(x.grad, wanted.sum(0).expand(3, -1))
    with pytest.raises(StateError, match="expected an operation that reads it"):
        lazy.mul_(2.0)


@pytest.mark.slow
@pytest.mark.truth("the folded model itself")
def test_what_a_class_computes_for_itself_when_it_is_opened_stays(tmp_path):
    """GPT-Neo has a mask that no file holds, in the module that owns packed layers."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 32}
    kinds = [[["global", "local"], 1]]
    net = GPTNeoForCausalLM(
        GPTNeoConfig(vocab_size=80, attention_types=kinds, window_size=4, **small)
    )
    moved(net).save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    plan = RTN(bits=4, group=16).plan(model)
    plan.save(model, tmp_path / "new")
    wanted = answer(plan.fold(model))
    for opened in (
        sonde.load(str(tmp_path / "new"), device="cpu").module,
        GPTNeoForCausalLM.from_pretrained(tmp_path / "new"),
    ):
        torch.testing.assert_close(answer(opened), wanted, rtol=1e-5, atol=1e-5)
