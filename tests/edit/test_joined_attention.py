"""Keys and values of another run: a text that follows another is the model's own truth."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sonde.core import InputError, ShapeError
from sonde.edit import joined_attention


def model(kind: str, attention: str) -> Any:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=50, n_positions=32, n_embd=24, n_layer=3, n_head=4)
        config._attn_implementation = attention
        return GPT2LMHeadModel(config).eval()
    sizes: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3}
    config = LlamaConfig(vocab_size=50, num_attention_heads=4, num_key_value_heads=2, **sizes)
    config._attn_implementation = attention
    return LlamaForCausalLM(config).eval()


DRAW = torch.Generator().manual_seed(1)
FIRST = torch.randint(1, 50, (2, 7), generator=DRAW)
SECOND = torch.randint(1, 50, (2, 5), generator=DRAW)
REAL = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])


@pytest.mark.truth("the model itself on both texts, one after the other")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.no_grad()
def test_a_text_that_sees_another_is_the_text_after_it(kind, attention):
    net = model(kind, attention)
    for row, n in enumerate((7, 4)):
        both = torch.cat([FIRST[row : row + 1, :n], SECOND[row : row + 1]], 1)
        want = net(both).logits[0, n:]
        places = {"position_ids": torch.arange(n, n + 5)[None].expand(2, -1)}
        with joined_attention(net, {"input_ids": FIRST, "attention_mask": REAL}):
            got = net(SECOND, **places).logits[row]
            steps = net.generate(SECOND[:, :1], max_new_tokens=1, do_sample=False, pad_token_id=0)
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
        assert steps.shape == (2, 2)


@pytest.mark.truth("the softmax of one query over both texts, by hand")
@torch.no_grad()
def test_strength_weighs_the_keys_of_the_source():
    net, seen = model("gpt2", "eager"), {}
    name = "transformer.h.1.attn"
    layer = net.get_submodule(name)
    layer.register_forward_hook(lambda *a: seen.update(probs=a[2][1]))
    with joined_attention(net, {"input_ids": FIRST}, layers=[name]):
        net(SECOND, output_attentions=True)
    plain = seen["probs"][:, :, -1]
    with joined_attention(net, {"input_ids": FIRST}, layers=[name], strength=0.3):
        net(SECOND, output_attentions=True)
    found = seen["probs"][:, :, -1]
    weight = torch.tensor([0.3] * 7 + [1.0] * 5)
    want = plain * weight / (plain * weight).sum(-1, keepdim=True)
    torch.testing.assert_close(found, want)
    with joined_attention(net, {"input_ids": FIRST}, strength=0.0):
        unmoved = net(SECOND).logits
    assert torch.equal(unmoved, net(SECOND).logits)


@torch.no_grad()
def test_what_cannot_be_joined_is_refused():
    net = model("gpt2", "sdpa")
    with joined_attention(net, {"input_ids": FIRST}), pytest.raises(ShapeError, match="2 examples"):
        net(SECOND[:1])
    with (
        pytest.raises(InputError, match=r"got 'h\.7'"),
        joined_attention(net, {"input_ids": FIRST}, layers=["h.7"]),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"found none in GPT2LMHeadModel among lm_head"),
        joined_attention(net, {"input_ids": FIRST}, layers=["lm_head"]),
    ):
        pass
