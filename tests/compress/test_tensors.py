"""Embeddings and stacks of experts: packed, tied, saved, opened, refused."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import sonde
from sonde.compress import (
    AWQ,
    GPTQ,
    RTN,
    BitAllocation,
    BlockRounding,
    DecoupleQ,
    SmoothQuant,
    SparseGPT,
)
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.weights import undo
from sonde.weights._weight_file import file_hash
from sonde.weights.folder import weight_bytes

IDS = torch.tensor([[5, 9, 33, 2, 71], [8, 8, 1, 60, 12]])
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 80}


def mixtral() -> Any:
    more = {"intermediate_size": 96, "num_key_value_heads": 2, "num_local_experts": 5}
    return MixtralForCausalLM(MixtralConfig(**SMALL, **more))


def gpt_oss() -> Any:
    more = {
        "intermediate_size": 96,
        "num_key_value_heads": 2,
        "num_local_experts": 5,
        "head_dim": 8,
    }
    return GptOssForCausalLM(GptOssConfig(**SMALL, **more, num_experts_per_tok=2))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=80))


def t5() -> Any:
    small = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=80, decoder_start_token_id=0, **small))


def made(make: Any) -> Any:
    torch.manual_seed(0)
    net = make().eval()
    for x in net.parameters():
        x.data += 0.05 * torch.randn_like(x)
    return net


def answer(net: Any) -> torch.Tensor:
    more = {"decoder_input_ids": IDS[:, :3]} if net.config.is_encoder_decoder else {}
    with torch.no_grad():
        return net(input_ids=IDS, **more).logits


def generated(net: Any) -> list[list[int]]:
    return net.generate(input_ids=IDS, max_new_tokens=4, do_sample=False).tolist()


@pytest.mark.slow
@pytest.mark.truth("a plain torch copy with the unpacked weights; sizes of the files")
@pytest.mark.parametrize(
    ("make", "layers", "smaller"),
    [(mixtral, None, 3.5), (gpt_oss, None, 3.0), (gpt2, ("*",), 3.5), (t5, ("*", "shared"), 3.0)],
)
def test_a_folder_of_packed_tensors_answers_alike_and_comes_back(tmp_path, make, layers, smaller):
    made(make).save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    plan = RTN(bits=4, group=48, layers=layers).plan(model)  # no kernel rounds rows for it
    twin: Any = copy.deepcopy(model.module)
    for name, change in plan.changes.items():
        twin.get_parameter(name).data = change.of(twin.get_parameter(name))
    wanted = answer(twin)
    assert (wanted - answer(model.module)).abs().max() > 1e-3
    plan.save(model, tmp_path / "new")
    opened = (
        plan.fold(model),
        sonde.load(str(tmp_path / "new"), device="cpu").module,
        type(twin).from_pretrained(tmp_path / "new").eval(),
    )
    for net in opened:
        torch.testing.assert_close(answer(net), wanted, rtol=1e-3, atol=1e-3)
        assert generated(net) == generated(twin)
    sizes = [weight_bytes(tmp_path / one) for one in ("old", "new")]
    assert sizes[0] > smaller * sizes[1]
    undo(tmp_path / "new", tmp_path / "again")
    for file in (tmp_path / "old").iterdir():
        assert file_hash(file) == file_hash(tmp_path / "again" / file.name)


METHODS = (GPTQ(), AWQ(), SmoothQuant(bits=4), DecoupleQ(bits=4), BitAllocation(), BlockRounding())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_methods_that_round_layers_round_experts_and_named_embeddings(method):
    net = made(mixtral)
    data = open_inputs(sonde.Model(net, config=net.config, task="causal"), IDS)
    stacks = {f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")}
    plan = method.plan(sonde.Model(net, config=net.config, task="causal"), {"calibration": data})
    assert stacks <= set(plan.changes)
    assert "model.embed_tokens.weight" not in plan.changes
    plain = RTN(bits=4, symmetry="symmetric" if isinstance(method, SmoothQuant) else "asymmetric")
    for name in stacks:
        old = net.get_parameter(name)
        assert torch.equal(plan.changes[name].of(old), plain.plan(net).changes[name].of(old))


def test_an_embedding_stays_unless_it_is_named_and_zeros_are_not_for_it():
    net = nn.ModuleDict({"table": nn.Embedding(9, 8), "out": nn.Linear(8, 3)})
    assert set(RTN().plan(net).changes) == {"out.weight"}
    assert set(RTN(layers=("table",)).plan(net).changes) == {"table.weight"}
    assert set(RTN(layers=("table", "out")).plan(net).changes) == {"table.weight", "out.weight"}
    with pytest.raises(InputError, match="no layer matches 'tables'"):
        RTN(layers=("tables",)).plan(net)
    data = open_inputs(sonde.Model(nn.Linear(8, 3)), torch.randn(4, 8))
    with pytest.raises(InputError, match="SparseGPT: table is an embedding"):
        SparseGPT(layers=("table",)).plan(net, {"calibration": data})
