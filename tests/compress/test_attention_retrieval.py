"""Retrieval by attention: a head that matches letters, depths and lengths, budgets, bad input."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot, scaled_dot_product_attention

import sonde
from sonde import Model
from sonde.compress import AttentionRetrieval
from sonde.core import InputError


class Head(nn.Module):
    """Attends to earlier tokens that are the same letter."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(256, 256, bias=False) for _ in range(3))
        for layer in (self.query, self.key, self.value):
            nn.init.eye_(layer.weight)

    def forward(self, x):
        parts = (layer(x).unsqueeze(1) for layer in (self.query, self.key, self.value))
        return scaled_dot_product_attention(*parts, is_causal=True, scale=12.0)[:, 0]


class Matching(nn.Module):
    """A model of two blocks with a head each; the first alone is asked."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Head(), Head()])
        self.longest = 0

    def forward(self, ids):
        self.longest = max(self.longest, ids.shape[1])
        x = one_hot(ids, 256).float()
        for block in self.blocks:
            x = x + block(x)
        return SimpleNamespace(logits=x)


@pytest.fixture(scope="module")
def shipped():
    return sonde.load("sonde:stdlib", device="cpu")


@pytest.fixture(scope="module")
def matching(shipped):
    return Model(Matching().eval(), processor=shipped.processor, task="causal")


@pytest.mark.truth("planted: one sentence alone holds the letter that the question asks for")
@pytest.mark.parametrize("n", [3, 20, 90])
@pytest.mark.parametrize("depth", [0.0, 0.3, 0.99])
def test_the_planted_sentence_is_found_at_any_depth(matching, n, depth):
    lines = [f"abc def ghi {i % 7}.\n" for i in range(n)]
    lines[int(depth * n)] = "the key is zzz.\n"
    matching.module.longest = 0
    found = AttentionRetrieval(80, 40, top=6, layer=0).retrieve(matching, "".join(lines), "zz")
    assert "zzz" in found.text
    assert matching.module.longest <= 80
    assert len(found.text) <= 40
    assert all("".join(lines)[a:b] in found.text for a, b in found.spans)
    assert found.n_steps >= len("".join(lines)) / 80


@pytest.mark.timeout(60)
def test_sentences_longer_than_the_budget_come_to_an_end(matching):
    lines = [f"{letter * 70}. " for letter in "abzcd"]
    found = AttentionRetrieval(80, 20, top=6, layer=0).retrieve(matching, "".join(lines), "zz")
    assert found.text == lines[2]


def test_a_short_text_stays_whole(matching):
    found = AttentionRetrieval().retrieve(matching, "One. Two!\nThree", "q")
    assert found.text == "One. Two!\nThree"
    assert found.n_steps == 1


@pytest.mark.truth("attentions of transformers' own eager forward")
def test_the_attention_asked_is_that_of_the_model(shipped):
    from transformers import AutoModelForCausalLM

    from sonde.data.shipped import model_directory

    eager = AutoModelForCausalLM.from_pretrained(
        model_directory("sonde:stdlib"), attn_implementation="eager"
    ).eval()
    context, asked = list(b"def area(x):\n"), list(b"area(")
    rule = AttentionRetrieval(layer=2, smooth=1)
    with torch.no_grad():
        probs = eager(torch.tensor([context + asked]), output_attentions=True).attentions[2]
    wanted = probs[0, :, len(context) :, : len(context)].double().mean(0).sum(0)
    torch.testing.assert_close(
        rule._attended(shipped, context, asked), wanted, rtol=1e-4, atol=1e-6
    )


def test_what_is_refused(matching):
    with pytest.raises(InputError, match="a budget below the window"):
        AttentionRetrieval(window=10, budget=10)
    with pytest.raises(InputError, match="a question of 1 to 159 tokens"):
        AttentionRetrieval().retrieve(matching, "a.", "")
    short = AttentionRetrieval(window=10, budget=6)
    assert short.retrieve(matching, "a.", "zzz").text == "a."
    with pytest.raises(InputError, match="a question of 1 to 3 tokens, got 4"):
        short.retrieve(matching, "a.", "zzzz")
    with pytest.raises(InputError, match="a causal language model with a tokenizer"):
        AttentionRetrieval().retrieve(sonde.load("sonde:digits"), "a.", "b")
