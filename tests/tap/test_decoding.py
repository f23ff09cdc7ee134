"""Decoding rules inside generate: several architectures and caches, and what is refused."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from sonde.core import InputError, Model, ShapeError, SiteError
from sonde.tap import Decode, DecodeContext, OtherLogits, OtherPrompts, OtherState, Tap
from sonde.testing import causal_model, check


@dataclass(frozen=True, eq=False)
class Mixture(Decode):
    """Adds the log-probabilities of what it reads."""

    others: dict[str, OtherLogits]
    strength: float = 1.0

    def reads(self) -> dict[str, OtherLogits]:
        return self.others

    def step(self, logits: Tensor, context: DecodeContext) -> Tensor:
        if self.strength == 0.0:
            return logits
        found = logits.log_softmax(1)
        for x in context.others.values():
            found = found + self.strength * x.log_softmax(1)
        return found


def sharp(build: Any, seed: int) -> Any:
    """Return a tiny model whose probabilities are far from equal."""
    model = build()
    torch.manual_seed(seed)
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.3)
    return model


def generated(model: Any, processor: Any, **how: Any) -> Tensor:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    ids = torch.tensor([[0, 0, 7, 9], [5, 8, 5, 8]])
    torch.manual_seed(0)
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0} | how
    return model.generate(ids, attention_mask=mask, logits_processor=[processor], **how)


def whole_texts(rule: Mixture, model: Any) -> Any:
    """Return a processor that reads each text whole, by itself, without a cache."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        times = len(ids) // 2
        rows = [ids[i, 2 if i < times else 0 :][None] for i in range(len(ids))]
        for read in rule.others.values():
            its: Any = read.model or model
            with torch.no_grad():
                logits = torch.cat([its(row, use_cache=False).logits[:, -1] for row in rows])
            scores = scores.log_softmax(1) + logits.log_softmax(1)
        return scores.log_softmax(1)

    return process


PAIRS = [
    (models.gpt2, models.llama),
    (models.opt, models.qwen2),
    (models.llama, models.mamba),
    (models.mamba, models.gpt2),
]


HOW = {
    "no cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "samples": {"do_sample": True, "num_return_sequences": 2},
}
CASES = [
    *((*pair, how) for pair in PAIRS for how in ({}, {"num_beams": 3})),
    *((*PAIRS[0], how) for how in HOW.values()),
    (*PAIRS[2], HOW["static"]),
    (*PAIRS[3], HOW["samples"]),
]


@pytest.mark.parametrize(("build", "other", "how"), CASES)
def test_the_tokens_are_those_of_whole_texts(build, other, how):
    model, another = sharp(build, 1), sharp(other, 2)
    rule = Mixture({"other": OtherLogits(another)})
    expected = generated(model, whole_texts(rule, model), **how)
    assert torch.equal(generated(model, rule.bind(model), **how), expected)


@pytest.mark.slow
def test_laws():
    check(Mixture({"other": OtherLogits(causal_model(1)), "low": OtherLogits(layer=0)}))


def test_a_processor_serves_several_generations():
    model = causal_model()
    rule = Mixture({"other": OtherLogits(causal_model(1))})
    with rule.bind(model) as processor:
        first = model.generate(torch.tensor([[5]]), max_new_tokens=3, logits_processor=[processor])
        longer = first[:, :-2]
        model(longer)
        again = model.generate(longer, max_new_tokens=2, logits_processor=[processor])
        batch = generated(model, processor)
    assert torch.equal(again, first)
    assert torch.equal(batch, generated(model, rule.bind(model)))
    assert not model._forward_pre_hooks


@dataclass(frozen=True, eq=False)
class Keeps(Decode):
    """Keeps the states that it reads."""

    seen: list[Tensor]

    def reads(self) -> dict[str, OtherState]:
        return {"state": OtherState("layers.1.mlp"), "input": OtherState("layers.0:in")}

    def step(self, logits: Tensor, context: DecodeContext) -> Tensor:
        self.seen.append(torch.cat((context.others["state"], context.others["input"]), dim=1))
        return logits


@pytest.mark.truth("a tap on the whole text")
def test_states_are_those_of_the_last_token():
    model, seen = causal_model(), []
    out = model.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=4, logits_processor=[Keeps(seen).bind(model)]
    )
    with Tap(model, ["layers.1.mlp", "layers.0:in"]) as tap:
        tap.run(out)
    rows = torch.cat([tap.rows[f"model.{name}"] for name in ("layers.1.mlp:out", "layers.0:in")], 2)
    torch.testing.assert_close(torch.cat(seen), rows[0, 2 : 2 + len(seen)], rtol=0, atol=1e-5)


class Narrow(Decode):
    """Forgets a token."""

    def step(self, logits: Tensor, context: DecodeContext) -> Tensor:
        return logits[:, 1:]


def test_what_is_refused():
    model = causal_model()
    rule = Mixture({"other": OtherLogits(causal_model(1))})
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5]])
    for how in ({"assistant_model": causal_model(2)}, {"prompt_lookup_num_tokens": 3}):
        with pytest.raises(InputError, match="leave out assistant_model and prompt_lookup"):
            model.generate(ids, max_new_tokens=9, logits_processor=[rule.bind(model)], **how)
    embeds = model.get_input_embeddings()(ids).detach()
    with pytest.raises(InputError, match="pass input_ids"):
        model.generate(inputs_embeds=embeds, max_new_tokens=2, logits_processor=[rule.bind(model)])
    with pytest.raises(
        InputError, match=r"the same vocabulary, got 32 tokens of .* and 61 of GPT2"
    ):
        Mixture({"other": OtherLogits(models.gpt2())}).bind(model)
    with pytest.raises(InputError, match="causal language models, got T5"):
        Mixture({"other": OtherLogits(models.t5())}).bind(model)
    with pytest.raises(ShapeError, match=r"expected shape \(1, 32\), got \(1, 31\)"):
        model.generate(ids, max_new_tokens=1, logits_processor=[Narrow().bind(model)])
    two = Mixture({"other": OtherLogits(prompt=OtherPrompts(torch.tensor([[1], [2]])))})
    with pytest.raises(InputError, match="got 2 for 1 rows"):
        model.generate(ids, max_new_tokens=1, logits_processor=[two.bind(model)])
    with pytest.raises(SiteError, match=r"layer in -3\.\.2"):
        Mixture({"other": OtherLogits(layer=9)}).bind(model)


class Words:
    """A tokenizer of two words."""

    def __init__(self, first: str, second: str) -> None:
        self.words = {first: 0, second: 1}

    def get_vocab(self) -> dict[str, int]:
        return self.words


def test_tokenizers_of_other_words_are_refused():
    model, other = (
        Model(causal_model(i), Words(*w)) for i, w in enumerate((("a", "b"), ("b", "a")))
    )
    with pytest.raises(InputError, match=r"token 'a' as number 0 of .* and 1 of"):
        Mixture({"other": OtherLogits(other)}).bind(model)
