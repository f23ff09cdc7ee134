"""Superposed drafts: against greedy search, and against plain loops without a cache."""

import math

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.edit import NGrams, SuperposedGenerate, linearity
from sonde.testing import causal_model

TEXTS = [[3, 4, 5, 6, 7, 8], [4, 5, 9, 4, 5, 6], [7, 8, 3, 4]]
PROMPT = torch.tensor([[3, 4, 5]])


def generated(model, rule, ids=PROMPT, n=5, **how):
    how = {"max_new_tokens": n, "eos_token_id": None, "pad_token_id": 0} | how
    return model.generate(ids, custom_generate=rule, **how)


@pytest.mark.truth("greedy search of transformers")
def test_one_draft_is_greedy_search_with_padding_and_an_end():
    model = causal_model()
    ids, mask = torch.tensor([[0, 0, 5], [7, 8, 9]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    how = {"attention_mask": mask, "n": 8}
    plain = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, eos_token_id=None, pad_token_id=0
    )
    one = SuperposedGenerate(drafts=1, top=4)
    assert torch.equal(generated(model, one, ids, **how), plain)
    end = int(plain[1, 5])
    ended = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, eos_token_id=end, pad_token_id=0
    )
    assert torch.equal(generated(model, one, ids, **how, eos_token_id=end), ended)


def by_loops(model, rule: SuperposedGenerate, ids: list[int], n: int) -> list[list[int]]:
    """Return the drafts, from whole forwards and Python floats."""
    assert rule.ngrams is not None
    embed = model.get_input_embeddings().weight.detach()
    read = embed[torch.tensor(ids)]
    drafts = [(0.0, list(ids))]
    for _ in range(n):
        with torch.no_grad():
            logits = model(inputs_embeds=read[None], use_cache=False).logits[0, -1].double()
        p = (logits / rule.temperature).softmax(0)
        top = p.topk(rule.top).indices.tolist()
        whole = sum(float(p[t]) for t in top)
        pairs = []
        for score, text in drafts:
            grams = rule.ngrams.probabilities(text, top)
            for token, g in zip(top, grams, strict=True):
                own = (1 - rule.mix) * math.log(float(p[token]) / whole)
                own += rule.mix * math.log(g) if g > 0 else -rule.penalty
                pairs.append((score + own, [*text, token]))
        drafts = sorted(pairs, reverse=True)[: rule.drafts]
        scores = torch.tensor([score for score, _ in drafts], dtype=torch.float64)
        last = torch.tensor([text[-1] for _, text in drafts])
        mixed = scores.softmax(0).float() @ embed[last]
        read = torch.cat((read, mixed[None]))
    return [text for _, text in drafts]


@pytest.mark.truth("all pairs of draft and token in Python loops, whole forwards without a cache")
def test_drafts_are_the_best_pairs():
    model = causal_model()
    rule = SuperposedGenerate(3, 6, NGrams.of(TEXTS), mix=0.3, temperature=0.7, penalty=9.0)
    found = generated(model, rule)
    assert found.tolist() == by_loops(model, rule, [3, 4, 5], 5)
    two = generated(model, rule, torch.tensor([[9, 8, 7], [3, 4, 5]]))
    assert torch.equal(two[3:], found)
    assert len(set(map(tuple, found.tolist()))) == 3


@pytest.mark.truth("counts by hand")
def test_orders_that_were_not_seen_leave_their_weight_to_the_others():
    grams = NGrams.of(TEXTS, weights=(0.2, 0.8))
    assert grams.probabilities([9, 9, 4], [5, 6]) == [1.0, 0.0]  # only (4,) was seen
    assert grams.probabilities([4, 5], [6, 9]) == pytest.approx([2 / 3, 1 / 3])
    assert grams.probabilities([3, 4], [5]) == pytest.approx([1.0])
    assert grams.probabilities([31], [5, 6]) == [0.0, 0.0]
    parts = NGrams.of(TEXTS[:1], (0.2, 0.8)).merge(NGrams.of(TEXTS[1:], (0.2, 0.8)))
    assert parts.counts == grams.counts


@pytest.mark.truth("a model whose layers do nothing is linear up to its last norm")
def test_linearity():
    model = causal_model()
    ids, w = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([0.4, 0.6])
    before = linearity(model, ids, w)
    assert float(before[0]) == pytest.approx(1.0, abs=1e-6)
    assert float(before[1]) < 0.999
    for layer in model.model.layers:
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            nn.init.zeros_(part.weight)
    torch.testing.assert_close(linearity(model, ids, w)[:-1], torch.ones(3), rtol=0, atol=1e-6)


def test_what_is_refused():
    with pytest.raises(InputError, match="drafts=3, top=2"):
        SuperposedGenerate(3, 2)
    with pytest.raises(InputError, match=r"mix in \[0, 1\]"):
        SuperposedGenerate(mix=2.0)
    with pytest.raises(InputError, match="expected no logits processors"):
        generated(causal_model(), SuperposedGenerate(), repetition_penalty=2.0)
    with pytest.raises(InputError, match="expected weights"):
        NGrams().merge(NGrams(weights=(1.0,)))
