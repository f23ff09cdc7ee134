"""What routers did, against the scores that the model returns itself."""

from typing import Any

import pytest
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MiniMaxM2Config,
    MiniMaxM2ForCausalLM,
)

from compress.mixture_case import inputs, mixture, texts
from sonde import Model
from sonde.compress import MergeExperts, expert_use
from sonde.core import InputError, StateError


@pytest.mark.truth("the router logits that transformers returns, text by text")
def test_counts_and_products_without_padding():
    model = mixture()
    use = expert_use(model, inputs(model))
    scores = [[], []]
    with torch.no_grad():
        for text in texts():
            out = model.module(text["input_ids"][None], output_router_logits=True)
            for layer, found in enumerate(out.router_logits):
                scores[layer].append(found.double())
    for layer in range(2):
        z = torch.cat(scores[layer])
        assert use.tokens == len(z) == 48
        chosen = z.topk(2, 1).indices.flatten()
        assert use.counts[layer].tolist() == torch.bincount(chosen, minlength=5).tolist()
        torch.testing.assert_close(
            use.share(layer), torch.bincount(chosen, minlength=5).double() / 48
        )
        torch.testing.assert_close(use.grams[layer], z.T @ z, rtol=1e-5, atol=1e-5)


@pytest.mark.truth("the choice that the model's own router makes, text by text")
def test_a_router_with_a_bias_of_the_choice_is_called_with_it():
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4}
    mixed = {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = MiniMaxM2Config(**sizes, **heads, **mixed)
    net = MiniMaxM2ForCausalLM(config).eval()
    picked = []
    for i, layer in enumerate(net.model.layers):
        layer.mlp.e_score_correction_bias.copy_(torch.tensor([0.0, 0.3, -0.3, 0.0]).roll(i))
        layer.mlp.gate.register_forward_hook(lambda _m, _a, out: picked.append(out[2].flatten()))
    model = Model(net, config=config, task="causal")
    with torch.no_grad():
        for text in texts():
            net(text["input_ids"][None])
    own = [torch.cat(picked[i::2]) for i in range(2)]
    use = expert_use(model, inputs(model))
    for count, chosen in zip(use.counts, own, strict=True):
        assert count.tolist() == torch.bincount(chosen, minlength=4).tolist()


def test_experts_of_another_form_are_named():
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4}
    mixed = {"num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    net = GptOssForCausalLM(GptOssConfig(**sizes, **heads, **mixed))
    with pytest.raises(InputError, match=r"down_proj_bias \(4, 8\)\. Round such experts instead"):
        MergeExperts().check(Model(net))


def test_shards_add_up():
    model = mixture()
    data = inputs(model)
    whole = expert_use(model, data)
    parts = expert_use(model, data, stop=1).merge(expert_use(model, data, start=1))
    assert parts.tokens == whole.tokens
    for layer in range(2):
        assert parts.counts[layer].equal(whole.counts[layer])
        torch.testing.assert_close(parts.grams[layer], whole.grams[layer], rtol=1e-5, atol=1e-5)
    other = mixture(seed=1)
    with pytest.raises(StateError, match="got two models"):
        whole.merge(expert_use(other, inputs(other)))


def test_a_model_without_experts_is_refused():
    with pytest.raises(InputError, match="got none in Linear"):
        expert_use(torch.nn.Linear(3, 2), inputs(mixture()))
