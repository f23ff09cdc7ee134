"""What routers did, against the scores that the model returns itself."""

import pytest
import torch

from compress.mixture_case import inputs, mixture, texts
from sonde.compress import expert_use
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
    with pytest.raises(StateError, match="got those of two models"):
        whole.merge(expert_use(other, inputs(other)))


def test_a_model_without_experts_is_refused():
    with pytest.raises(InputError, match="got none in Linear"):
        expert_use(torch.nn.Linear(3, 2), inputs(mixture()))
