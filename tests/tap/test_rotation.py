"""How attentions rotate queries, against what their own code was given and gave."""

import sys

import pytest
import torch

from attention_models import GROUPED, TEXTS
from cache_name import CACHE
from models import _LLAMA, _hf
from sonde.core import CacheRule, QueryMoments, SiteError
from sonde.tap.cache.evicting import caching

REAL = (9, 6)
MODELS = {
    **{name: TEXTS[name] for name in ("llama", "qwen3", "gemma", "gpt_neox", "mixtral")},
    "cohere": _hf("CohereForCausalLM", "CohereConfig", **GROUPED),
    "phi": _hf("PhiForCausalLM", "PhiConfig", **_LLAMA, partial_rotary_factor=0.5),
    "glm": _hf("GlmForCausalLM", "GlmConfig", **GROUPED, head_dim=8),
}


def queries(net, ids, mask, monkeypatch, turned: bool):
    """Return the queries of the first layer that the kernel is given, rotated or not."""
    found = []
    module = sys.modules[type(net).__module__]

    def kernel(module, query, key, value, *_, **__):
        found.append(query.detach())
        return torch.zeros_like(query.transpose(1, 2)), None

    with monkeypatch.context() as patch:
        patch.setitem(torch_interface(), "sdpa", kernel)
        if not turned:
            patch.setattr(module, "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k))
        with torch.no_grad():
            net(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    return found[0]


def torch_interface():
    from transformers import AttentionInterface

    return AttentionInterface._global_mapping


class Asking(CacheRule):
    """Keeps the newest tokens and asks for queries from the second real token on."""

    budget = 0.5

    def reads_rotation(self):
        return True

    def reads_queries(self):
        return 1

    def score(self, keys, values, seen):
        self.shown.append(seen)
        return seen.index.float()

    def __init__(self):
        self.shown = []


@pytest.mark.truth("the model's own queries with its rotation left out, and those of a longer text")
@pytest.mark.parametrize("name", MODELS)
def test_moments_are_of_unturned_queries_and_the_next_ones_turn_as_the_model_turns_them(
    name, monkeypatch
):
    net = MODELS[name]().eval()
    ids = torch.randint(5, 60, (2, 14), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(14) >= 9 - torch.tensor(REAL)[:, None]).long()
    plain, turned = (queries(net, ids, mask, monkeypatch, way) for way in (False, True))
    rule = Asking()
    with torch.no_grad(), caching(net, lambda number: Asking() if number else rule) as c:
        place = (mask.cumsum(1) - 1).clamp(min=0)
        for start, stop in ((0, 7), (7, 9)):  # the queries of both calls count
            given = {"position_ids": place[:, start:stop], CACHE: c}
            net(ids[:, start:stop], attention_mask=mask[:, :stop], **given)
    seen = rule.shown[-1]
    for row, n in enumerate(REAL):
        own = plain[row, :, 9 - n + 1 : 9].double()
        torch.testing.assert_close(
            seen.queries.mean[row].double(), own.mean(1), atol=1e-5, rtol=1e-4
        )
        spread = torch.stack([torch.cov(x.T, correction=0) for x in own])
        found = seen.queries.covariance[row].double()
        torch.testing.assert_close(found, spread, atol=1e-5, rtol=1e-3)
        matrices = seen.rotation.each(5)[row]
        made = torch.einsum("tij,htj->hti", matrices, plain[row, :, 9:14])
        torch.testing.assert_close(made, turned[row, :, 9:14], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(
            seen.rotation.mean(5)[row], matrices.mean(0), atol=1e-5, rtol=1e-4
        )


def test_layers_that_do_not_rotate_are_told_from_others_and_unknown_rotations_are_refused():
    net = _hf("SmolLM3ForCausalLM", "SmolLM3Config", **GROUPED, no_rope_layers=[1, 0, 1])().eval()
    rules = [Asking() for _ in range(3)]
    with torch.no_grad(), caching(net, rules.__getitem__) as cache:
        net(torch.arange(5, 14)[None], **{CACHE: cache})
    assert [rule.shown[0].rotation is None for rule in rules] == [False, True, False]
    gptj = _hf("GPTJForCausalLM", "GPTJConfig", n_embd=32, n_layer=2, n_head=4, n_positions=64,
               vocab_size=61, rotary_dim=4, bos_token_id=0, eos_token_id=0)().eval()  # fmt: skip
    with (
        # in older versions of transformers GPT-J computes its attention itself
        pytest.raises(
            SiteError, match=r"rotates its queries in an unknown way|its kernel from the"
        ),
        torch.no_grad(),
        caching(gptj, Asking()) as cache,
    ):
        gptj(torch.arange(5, 14)[None], **{CACHE: cache})


def test_moments_of_halves_merge_to_those_of_the_whole():
    draw = torch.Generator().manual_seed(4)
    q, real = torch.randn(3, 4, 11, 5, generator=draw), torch.rand(3, 11, generator=draw) < 0.7
    whole = QueryMoments.of(q, real)
    halves = [QueryMoments.of(q[:, :, s], real[:, s]) for s in (slice(0, 4), slice(4, 11))]
    merged = halves[0].merge(halves[1])
    torch.testing.assert_close(merged.covariance, whole.covariance)
    torch.testing.assert_close(merged.mean, whole.mean)
    rows = q.transpose(1, 2)[real]
    expected = torch.stack([torch.cov(rows[:, h].T, correction=0) for h in range(4)])
    torch.testing.assert_close(merged.pooled().covariance[0], expected)
