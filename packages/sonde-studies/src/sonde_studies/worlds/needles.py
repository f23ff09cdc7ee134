"""A made language of facts and filler, texts longer than a window, and a model that recalls facts.

Every sentence has four letters. A fact holds a key, a capital, and a digit; other sentences are
small letters. A question is a question mark and a key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import LlamaConfig, LlamaForCausalLM

from sonde import Model
from sonde_studies.arms import trained_once
from sonde_studies.worlds.learning import drawn, minimise

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.?"
KEY, DIGIT, STOP, ASK = 26, 52, 62, 63
SHORT, ASKED, WINDOW, QUARTERS, FACTS = 12, 5, 64, 4, 24
FIT, STEPS, BATCH, DIM, LAYERS, INITIAL = 4_096, 200, 32, 32, 2, 0.1


@dataclass(frozen=True)
class LongText:
    """Sentences, a fact among them, and a question for it.

    Parameters
    ----------
    sentences : tuple of str
    fact, other : str
        The sentence that is asked for, and another fact.
    absent : str
        A key that no sentence holds.
    """

    sentences: tuple[str, ...]
    fact: str
    other: str
    absent: str

    @classmethod
    def drawn(cls, quarter: int, draw: torch.Generator, times: int = 8) -> "LongText":
        """Return a text of some windows' length, with the fact in one of its quarters."""
        n = times * WINDOW // 4
        keys = torch.randperm(26, generator=draw)
        places = torch.randperm(n, generator=draw)
        asked = int(places[places * QUARTERS // n == quarter][0])
        others = places[places != asked][: FACTS - 1]
        facts = torch.full((n,), -1)
        facts[torch.cat([torch.tensor([asked]), others])] = keys[:FACTS]
        made = tuple(as_text(row) for row in _sentences(facts[None], draw)[0])
        return cls(made, made[asked], made[int(others[0])], LETTERS[KEY + int(keys[-1])])

    @property
    def whole(self) -> str:
        """The text."""
        return "".join(self.sentences)

    @property
    def question(self) -> str:
        """The question for the fact's digit."""
        return f"?{self.fact[1]}"


def as_text(ids: Tensor) -> str:
    """Return letters of numbers."""
    return "".join(LETTERS[i] for i in ids.tolist())


def letters(text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
    """Return the numbers of letters, as a tokenizer does."""
    return {"input_ids": [LETTERS.index(one) for one in text]}


def _sentences(facts: Tensor, draw: torch.Generator) -> Tensor:
    """Return sentences (text, sentence, 4); facts are numbers of keys, -1 for none."""
    shape = (*facts.shape, 3)
    filler = torch.randint(26, shape, generator=draw)
    digit = DIGIT + torch.randint(10, facts.shape, generator=draw)
    key, value = (
        torch.where(facts < 0, filler[..., i], x) for i, x in ((1, KEY + facts), (2, digit))
    )
    return torch.stack([filler[..., 0], key, value, torch.full_like(key, STOP)], -1)


def _windows(n: int, seed: int) -> Tensor:
    """Return windows (window, letter): sentences, then questions with their answers."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.rand(n, 26, generator=draw).argsort(1)[:, :SHORT]
    n_facts = torch.randint(1, SHORT + 1, (n, 1), generator=draw)
    chance = torch.rand(n, SHORT, generator=draw).argsort(1)
    text = _sentences(torch.where(chance < n_facts, keys, -1), draw)
    asked = torch.multinomial((chance < n_facts).double(), ASKED, True, generator=draw)
    pairs = text.gather(1, asked[..., None].expand(-1, -1, 4))[..., 1:3]
    questions = torch.cat([torch.full((n, ASKED, 1), ASK), pairs], 2)
    return torch.cat([text.flatten(1), questions.flatten(1)], 1)


class PairEmbedding(nn.Module):
    """Sum of the embeddings of a letter and of the letter before it."""

    def __init__(self) -> None:
        super().__init__()
        self.letter, self.before = nn.Embedding(len(LETTERS), DIM), nn.Embedding(len(LETTERS), DIM)
        for part in (self.letter, self.before):
            nn.init.normal_(part.weight, std=INITIAL)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings (text, letter, unit) of numbers of letters (text, letter)."""
        return self.letter(ids) + pad(self.before(ids[:, :-1]), (0, 0, 1, 0))


@trained_once
def trained(seed: int, steps: int | None = None) -> Model:
    """Return a model that answers questions at the end of a window."""
    config = LlamaConfig(
        vocab_size=len(LETTERS), hidden_size=DIM, intermediate_size=2 * DIM,
        num_hidden_layers=LAYERS, num_attention_heads=2, max_position_embeddings=WINDOW,
        initializer_range=INITIAL,
    )  # fmt: skip

    def made() -> Any:
        net: Any = LlamaForCausalLM(config)
        net.model.embed_tokens = PairEmbedding()
        return net

    net = drawn(made, seed)
    rows = _windows(FIT, seed)
    at = torch.arange(4 * SHORT + 1, rows.shape[1], 3)

    def loss(batch: Tensor) -> Tensor:
        ids = rows[batch]
        return cross_entropy(net(ids).logits[:, at].flatten(0, 1), ids[:, at + 1].flatten())

    minimise(loss, net.parameters(), FIT, steps=steps or STEPS, seed=seed, batch=BATCH)
    return Model(net.eval(), config=config, processor=letters, task="causal")


@torch.no_grad()
def answers(model: Model, texts: Sequence[str]) -> tuple[str, Tensor]:
    """Return the likeliest digit after each text of one length, and its probability (text,)."""
    ids = torch.tensor([letters(text)["input_ids"] for text in texts])
    best = model.module(ids).logits[:, -1, DIGIT:STOP].softmax(-1).max(-1)
    return "".join(LETTERS[DIGIT + i] for i in best.indices.tolist()), best.values


def surest(model: Model, text: LongText) -> str:
    """Return the answer from the window in which the model is surest."""
    room = (WINDOW - len(text.question)) // 4 * 4
    starts = [*range(0, len(text.whole) - room, room), len(text.whole) - room]
    digits, sure = answers(model, [text.whole[i : i + room] + text.question for i in starts])
    return digits[int(sure.argmax())]


@torch.no_grad()
def within(model: Model, seed: int) -> float:
    """Return the accuracy on new windows, at the first question."""
    rows, at = _windows(200, 10_000 + seed), 4 * SHORT + 1
    best = model.module(rows[:, : at + 1]).logits[:, -1].argmax(1)
    return float((best == rows[:, at + 1]).double().mean())
