"""Small causal language models, trained here on texts with a small vocabulary."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sonde import Model, load
from sonde.tap import cache_argument, cache_of
from sonde_studies._gpt2 import gpt2
from sonde_studies.worlds.learning import drawn

PAD, IGNORED = "_", -100
LAYERS, HEADS, WIDTH = 3, 4, 64
RATE, WARM, BATCH = 3e-3, 20, 32
REWARD_RATE, TRIES, SMALL = 5e-4, 8, 1e-4

Texts = Callable[[int], list[str]]


def language_model(
    words: Sequence[str], longest: int, seed: int, width: int = WIDTH, layers: int = LAYERS
) -> Model:
    """Return an untrained GPT-2 with these words as tokens and context ``longest``."""

    def make() -> Any:
        size = (1 + len(words), longest, width, layers, HEADS)
        return gpt2(*size, special=0, activation_function="relu")

    return load(drawn(make, seed).eval(), processor=_tokenizer(words))


def _tokenizer(words: Sequence[str]) -> Any:
    """Return a tokenizer of whole words, which drops everything else."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({w: i for i, w in enumerate([PAD, *words])}, unk_token=PAD))
    plain, signs = ([w for w in words if w.isalnum() == kind] for kind in (True, False))
    pattern = "|".join([rf"\b(?:{'|'.join(plain)})\b", *map(re.escape, signs)])
    inner.pre_tokenizer = Split(Regex(pattern), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD)


def tokens_of(model: Model, texts: Sequence[str]) -> Int[Tensor, "text pos"]:
    """Return the tokens of texts, padded on the right with 0."""
    found = [torch.tensor(ids) for ids in model.processor(list(texts))["input_ids"]]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)


def train(
    model: Model,
    texts: Texts,
    steps: int,
    after: str,
    enough: Callable[[], bool] = lambda: False,
    every: int = 50,
    rate: float = RATE,
) -> int:
    """Train on new texts, from a given word on, until good enough; return the steps.

    Parameters
    ----------
    texts : callable
        Returns as many texts as it is asked for.
    steps : int
        At most.
    after : str
        Tokens before the first of these words are not learned.
    enough : callable
        Asked after each ``every`` steps.
    rate : float
        Of learning, after the first steps.
    """
    start = model.processor.convert_tokens_to_ids(after)

    def batch() -> tuple[Tensor, Tensor]:
        ids = tokens_of(model, texts(BATCH))
        return ids, ((ids == start).cumsum(1) > 0) & (ids > 0)

    return descend(model, batch, steps, enough, every, rate)


@torch.enable_grad()
def descend(
    model: Model,
    batch: Callable[[], tuple[Tensor, Tensor]],
    steps: int,
    enough: Callable[[], bool] = lambda: False,
    every: int = 50,
    rate: float = RATE,
) -> int:
    """Train as ``train`` does, on tokens and a mask of the tokens to learn."""
    module = model.module
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(step / WARM, 1.0)
        ids, kept = batch()
        wanted = torch.where(kept, ids, IGNORED)[:, 1:]
        logits = module(ids).logits[:, :-1]
        optimiser.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        if step % every == 0 and enough():
            return step
    return steps


@torch.enable_grad()
def reinforce(
    model: Model,
    prompts: Callable[[], dict[str, str]],
    is_right: Callable[[str, str], bool],
    steps: int,
    end: str,
    draw: np.random.Generator,
) -> None:
    """Train on a model's own samples by reward alone: 1 if correct, else 0.

    Each step samples anew and follows ``policy_loss`` once, without a penalty for drift.

    Parameters
    ----------
    prompts : callable
        Returns prompts with their right answers.
    is_right : callable
        Whether a text after a prompt reaches that answer.
    steps : int
    end : str
        As in ``sampled``.
    """
    module, tokenizer = model.module, model.processor
    optimiser = torch.optim.AdamW(module.parameters(), lr=REWARD_RATE, weight_decay=0.0)
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = REWARD_RATE * min(step / WARM, 1.0)
        asked = [pair for pair in prompts().items() for _ in range(TRIES)]
        texts, _ = sampled(model, [prompt for prompt, _ in asked], end, draw)
        right = [is_right(text, answer) for text, (_, answer) in zip(texts, asked, strict=True)]
        ids = tokens_of(model, [p + text for (p, _), text in zip(asked, texts, strict=True)])
        given = torch.tensor([len(x) for x in tokenizer([p for p, _ in asked])["input_ids"]])
        own = (torch.arange(ids.shape[1]) >= given[:, None]) & (ids > 0)
        chance = module(ids).logits[:, :-1, 1:].log_softmax(2)
        likely = chance.gather(2, (ids[:, 1:, None] - 1).clamp(min=0))[..., 0]
        optimiser.zero_grad()
        policy_loss(likely, own[:, 1:], torch.tensor(right).float().reshape(-1, TRIES)).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()


def policy_loss(
    likely: Float[Tensor, "text pos"],
    own: Bool[Tensor, "text pos"],
    reward: Float[Tensor, "prompt sample"],
    standard: bool = False,
) -> Float[Tensor, ""]:
    """Return the policy-gradient loss of samples from a policy.

    The gain of a sample is its reward less the mean over the samples after the same prompt
    (REINFORCE with a baseline of the group). Dividing it by the group's spread, as is usual, weighs
    prompts by how unsure the policy is of them. Up to a constant: the baseline holds the sample
    itself, and tokens are counted over the whole batch.

    Parameters
    ----------
    likely : Float[Tensor, "text pos"]
        Log-probability of each token.
    own : Bool[Tensor, "text pos"]
        Which tokens the policy drew.
    reward : Float[Tensor, "prompt sample"]
        Of the texts in their order.
    standard : bool, default=False
        Divide gains by the standard deviation of their group, plus 1e-4.
    """
    gain = reward - reward.mean(1, keepdim=True)
    if standard:
        gain = gain / (reward.std(1, correction=0, keepdim=True) + SMALL)
    return -(gain.reshape(-1, 1) * likely * own).sum() / own.sum()


@torch.no_grad()
def sampled(
    model: Model, prompts: Sequence[str], end: str, draw: np.random.Generator
) -> tuple[list[str], list[Float[Tensor, "pos"]]]:
    """Return a model's continuations of prompts, and the probability of each token.

    Prompts may differ in length; tokens are drawn at temperature 1, up to ``end`` or to the end of
    the context, where the text then lacks ``end``.
    """
    module, tokenizer = model.module, model.processor
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    stop = tokenizer.convert_tokens_to_ids(end)
    source = torch.Generator().manual_seed(int(draw.integers(2**62)))
    texts, chances = [""] * len(prompts), [torch.empty(0)] * len(prompts)
    given = [len(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    for length in sorted(set(given)):
        rows = [i for i, n in enumerate(given) if n == length]
        ids, chance = _written(module, tokens_of(model, [prompts[i] for i in rows]), stop, source)
        for i, own, likely in zip(rows, ids, chance, strict=True):
            ended = torch.nonzero(own == stop)
            n = int(ended[0]) + 1 if len(ended) else len(own)
            texts[i], chances[i] = _text([words[k] for k in own[:n].tolist()]), likely[:n]
    return texts, chances


def _text(words: Sequence[str]) -> str:
    """Return words as a text that is tokenised to the same words."""
    pairs = zip(["", *words], words, strict=False)
    return "".join(" " * (a.isalnum() and b.isalnum()) + b for a, b in pairs)


def _written(
    module: Any, ids: Int[Tensor, "text pos"], stop: int, source: torch.Generator
) -> tuple[Int[Tensor, "text new"], Float[Tensor, "text new"]]:
    """Return words sampled after prompts of one length until all end, and their probabilities."""
    past, chosen, likely = None, [], []
    running = torch.ones(len(ids), dtype=torch.bool)
    n = ids.shape[1]
    while running.any() and n < module.config.n_positions:
        out = module(ids, **{cache_argument(module): past}, use_cache=True)
        past = cache_of(out)
        chance = out.logits[:, -1, 1:].double().softmax(1)
        word = torch.multinomial(chance, 1, generator=source)
        ids = 1 + word
        chosen.append(ids)
        likely.append(chance.gather(1, word))
        running &= ids[:, 0] != stop
        n += 1
    return torch.cat(chosen, 1), torch.cat(likely, 1)
