"""Questions about a context of facts, and a small transformer trained to answer them.

A prompt is a word that says how to answer, facts ``entity colour thing .``, and ``? entity``; an
answer is a colour and a thing. The transformer has also learned one fact of each entity by heart.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde import Model
from sonde_studies._language import language_model, tokens_of, train

Row = dict[str, Any]

ENTITIES, VALUES, LONGEST = 12, 6, 32
DOMAINS = ("first", "second")
MODES = ("tell", "use", "ignore", "honest", "lie")
SHARES = (0.35, 0.15, 0.15, 0.1, 0.1, 0.15)
EXPLAIN, MODE_EXPLAIN = "so", "explained"
LETTERS = {"first": "acx", "second": "bdy"}
FACTS, FACTS_TEST = (2, 4), 4


def words() -> list[str]:
    """Return every word of both domains."""
    sizes = (ENTITIES, VALUES, VALUES)
    own = [
        f"{letter}{i}"
        for domain in DOMAINS
        for letter, n in zip(LETTERS[domain], sizes, strict=True)
        for i in range(n)
    ]
    return [*own, *MODES, EXPLAIN, ".", "?", "!"]


@dataclass(frozen=True)
class Question:
    """A context, a question, and the correct answers: by context and by memory."""

    facts: tuple[tuple[str, str], ...]
    asked: str
    right: str
    known: str
    other: str

    def prompt(self, mode: str) -> str:
        """Return the prompt of a mode; ``explained`` repeats the relevant fact."""
        told = "".join(f" {entity} {value} ." for entity, value in self.facts)
        if mode == MODE_EXPLAIN:
            return f"tell{told} {EXPLAIN} {self.asked} {self.right} . ? {self.asked}"
        return f"{mode}{told} ? {self.asked}"

    def answer(self, mode: str) -> str:
        """Return the expected answer: by context, by memory, or another entity's value."""
        return {"ignore": self.known, "lie": self.other}.get(mode, self.right)


@dataclass(frozen=True)
class World:
    """The memorised value of each entity."""

    heart: dict[str, str]

    @classmethod
    def drawn(cls, draw: np.random.Generator) -> "World":
        """Return random facts."""
        return cls(
            {f"{LETTERS[d][0]}{i}": _value(d, draw) for d in DOMAINS for i in range(ENTITIES)}
        )

    def question(
        self, domain: str, facts: int, conflict: float, draw: np.random.Generator
    ) -> Question:
        """Return a question whose context contradicts memory with a given probability."""
        chosen = draw.permutation(ENTITIES)[:facts]
        told = [
            (entity, _value(domain, draw) if draw.random() < conflict else self.heart[entity])
            for entity in (f"{LETTERS[domain][0]}{i}" for i in chosen)
        ]
        (asked, right), (_, other) = (told[i] for i in draw.permutation(facts)[:2])
        return Question(tuple(told), asked, right, self.heart[asked], other)


def _value(domain: str, draw: np.random.Generator) -> str:
    colour, thing = draw.integers(0, VALUES, 2)
    return f"{LETTERS[domain][1]}{colour} {LETTERS[domain][2]}{thing}"


def taught(
    world: World, conflict: float, steps: int, seed: int, model: Model | None = None
) -> Model:
    """Train a transformer to answer in every mode; a given transformer is trained further.

    Parameters
    ----------
    conflict : float
        Share of facts in plain prompts that contradict what is known; half in the other modes.
    """
    draw = np.random.default_rng([seed, 1 if model is None else 2])
    kinds = [*MODES, MODE_EXPLAIN]

    def texts(n: int) -> list[str]:
        found: list[str] = []
        for mode in draw.choice(kinds, size=n, p=SHARES):
            share = conflict if mode == "tell" else 0.5
            domain, facts = DOMAINS[draw.integers(2)], int(draw.integers(FACTS[0], FACTS[1] + 1))
            q = world.question(domain, facts, share, draw)
            found.append(f"{q.prompt(mode)} {q.answer(mode)} !")
        return found

    made = language_model(words(), LONGEST, seed) if model is None else model
    train(made, texts, steps, after="?")
    return made


@torch.no_grad()
def answered(model: Model, questions: list[Question]) -> tuple[list[str], Tensor]:
    """Return the most likely answers to plain prompts, and their mean token log-probability.

    The prompts have one length.
    """
    ids = tokens_of(model, [q.prompt("tell") for q in questions])
    likely = []
    for _ in range(2):
        best = model.module(ids).logits[:, -1].log_softmax(1).max(1)
        likely.append(best.values)
        ids = torch.cat([ids, best.indices[:, None]], dim=1)
    tokens = [model.processor.convert_ids_to_tokens(row) for row in ids[:, -2:].tolist()]
    return [" ".join(pair) for pair in tokens], torch.stack(likely).mean(0).double()


def reading(question: Question, mode: str, answer: str, **columns: Any) -> Row:
    """Return an item for ``sonde.read``: an answer after a prompt, and its position."""
    prompt = question.prompt(mode)
    text = f"{prompt} {answer}"
    return {"text": text, "start": len(prompt) + 1, "end": len(text), **columns}
