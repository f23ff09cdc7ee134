"""Tokens that are little attended to are dropped inside a model."""

from typing import Any

import pytest
import torch

import models
import sonde
from attention_models import TEXTS
from cache_name import CACHE
from sonde.compress import TokenPruning
from sonde.core import InputError


@pytest.mark.truth("the attentions of the whole model, and its next blocks on the tokens left")
def test_a_causal_model_goes_on_with_what_its_last_token_attends_to():
    net: Any = TEXTS["qwen2"]().eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():  # sharper attentions
            if ".q_proj." in name or ".k_proj." in name:
                weight *= 8.0
    ids = torch.randint(5, 61, (1, 13), generator=torch.Generator().manual_seed(8))
    rule = TokenPruning(0.5, after=(0,), asks="last")
    with torch.no_grad(), sonde.shortening(net, rule) as run:
        found = net(ids).logits[0]
    assert run.counts == [7, 7, 7]
    net.set_attn_implementation("eager")
    with torch.no_grad():
        whole = net(ids, output_attentions=True, output_hidden_states=True)
        attention = whole.attentions[0][0, :, -1].mean(0)
        assert int((attention > attention[-1]).sum()) > 7  # it stays all the same
        attention[-1] = torch.inf
        kept = attention.topk(7).indices.sort().values
        assert run.index is not None
        assert (run.index[0] >= 0).nonzero()[:, 0].tolist() == kept.tolist()
        x = whole.hidden_states[1]
        turned = net.model.rotary_emb(x, torch.arange(13)[None])
        later = torch.full((7, 7), -torch.inf).triu(1)[None, None]
        own = x[:, kept]
        for layer in net.model.layers[1:]:
            given = tuple(t[:, kept] for t in turned)
            own = layer(own, attention_mask=later, position_embeddings=given)
        expected = x.clone()
        expected[:, kept] = own
        logits = net.lm_head(net.model.norm(expected))[0]
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.truth("a mean over the dropped tokens, weighted by hand")
def test_the_rest_is_one_token_more():
    net: Any = models.vit().eval()
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    rule = TokenPruning(0.5, after=(1,), rest=True)
    states: list[torch.Tensor] = []
    blocks = net.vit.layers if hasattr(net.vit, "layers") else net.vit.encoder.layer
    handle = blocks[2].register_forward_pre_hook(
        lambda _, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad(), sonde.shortening(net, rule) as run:
        net(x)
    handle.remove()
    net.set_attn_implementation("eager")
    with torch.no_grad():
        whole = net(x, output_attentions=True, output_hidden_states=True)
    assert run.index is not None
    assert run.counts == [17, 10, 10]
    for row in range(2):
        attention = whole.attentions[1][row, :, 0].mean(0)
        attention[0] = torch.inf
        kept = set(attention.topk(9).indices.tolist())
        rest = [i for i in range(17) if i not in kept]
        assert len(set(run.index[row][rest].tolist())) == 1
        weight = attention[rest] / attention[rest].sum()
        expected = weight @ whole.hidden_states[2][row, rest]
        found = states[0][row, int(run.index[row, rest[0]])]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_caches_and_shares_of_nothing_are_refused():
    net: Any = TEXTS["qwen2"]().eval()
    from transformers import DynamicCache

    with (
        pytest.raises(InputError, match="without a cache"),
        sonde.shortening(net, TokenPruning(after=(0,))),
    ):
        net(torch.arange(5, 9)[None], **{CACHE: DynamicCache(config=net.config)})
    with pytest.raises(InputError, match="keep in"):
        TokenPruning(0.0)
