"""Prompts that judge rewritten facts: other wordings, and the same prompt about other subjects.

A change that gives the new answer may give it to every prompt, so the prompt alone says little.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.inputs import Model
from sonde.core.special_ids import special_ids
from sonde.edit import Fact
from sonde.run.changing.judge import CONFIDENT, Act
from sonde.tap.hooks.holding import in_eval

CONTEXTS = ("In short, ", "It is well known that ", "Here is a sentence. ")
"""Texts before a prompt, none of which a search uses."""
OF = re.compile(r"^(?:The|the) (?P<what>[\w ]+?) of (?P<subject>.+?) (?P<verb>is|was)$")
MOST = 8
"""Most neighbours of a fact."""


@dataclass(frozen=True)
class FactFigures:
    """Fractions of prompts before and after a change; NaN for a kind without a prompt.

    Parameters
    ----------
    efficacy, generality : tuple of float
        Fractions of facts, and of other wordings, that go on with the target: before and after.
    specificity : float
        Fraction of prompts about other subjects that keep their next token.
    n_wordings, n_neighbours : int
        Prompts of generality and specificity.
    n_unlike : int, default=0
        Wordings that do not count, because the unchanged model answers them unlike the prompt.
    """

    efficacy: tuple[float, float]
    generality: tuple[float, float]
    specificity: float
    n_wordings: int
    n_neighbours: int
    n_unlike: int = 0

    @property
    def merit(self) -> tuple[float, float]:
        """The smallest measured figure after the change, and the sum of all."""
        values = (self.efficacy[1], self.generality[1], self.specificity)
        numbers = [value for value in values if not math.isnan(value)]
        return min(numbers), sum(numbers)


@dataclass(frozen=True)
class FactPrompts:
    """Prompts that judge facts: other wordings and neighbours, one tuple for each fact."""

    facts: tuple[Fact, ...]
    wordings: tuple[tuple[str, ...], ...]
    neighbours: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, model: Model, facts: Sequence[Fact]) -> "FactPrompts":
        """Return the prompts that the facts name, or made ones where they name none."""
        wordings = tuple(fact.paraphrases or made_wordings(fact) for fact in facts)
        neighbours = tuple(fact.neighbours or made_neighbours(model, fact) for fact in facts)
        return cls(tuple(facts), wordings, neighbours)

    @property
    def n_neighbours(self) -> int:
        """Number of prompts about other subjects."""
        return sum(map(len, self.neighbours))

    def half(self, which: int) -> "FactPrompts":
        """Return every second wording and neighbour, from the first or the second on."""
        wordings = tuple(some[which::2] for some in self.wordings)
        neighbours = tuple(some[which::2] for some in self.neighbours)
        return FactPrompts(self.facts, wordings, neighbours)


def made_wordings(fact: Fact) -> tuple[str, ...]:
    """Return the prompt in other contexts, and in other words if it has the form "X of S is".

    Examples
    --------
    >>> made_wordings(Fact("The capital of France is", "France", " Rome"))[-1]
    "France's capital is"
    """
    wordings = [context + fact.prompt for context in CONTEXTS]
    match = OF.match(fact.prompt)
    if match and match["subject"] == fact.subject:
        what, verb = match["what"], match["verb"]
        of = f"the {what} of {fact.subject}"
        wordings += [
            f"{fact.subject}, whose {what} {verb}",
            f"Question: what {verb} {of}? Answer: {of} {verb}",
            f"Everybody knows the name of {of}, which {verb}",
            f"{fact.subject}'s {what} {verb}",
        ]
    return tuple(wordings)


def made_neighbours(model: Model, fact: Fact) -> tuple[str, ...]:
    """Return the prompt with other subjects, if the model is sure of their different answers.

    Candidates are the words of the vocabulary whose embeddings are nearest to the subject's.
    """
    tokenizer = model.processor
    table = getattr(embedding_layer(model.module), "weight", None)
    if table is None or tokenizer is None:
        return ()
    ids = tokenizer(" " + fact.subject, add_special_tokens=False)["input_ids"]
    table = table.detach().float()
    near = torch.nn.functional.cosine_similarity(table, table[ids].mean(0)[None]).argsort(
        descending=True
    )
    apart = {*special_ids(tokenizer), *ids}
    words: list[str] = []
    for token in near[: 16 * MOST].tolist():
        word = str(tokenizer.decode([token]))
        is_word = word[:1] == " " and word[1:].isalpha() and len(word) > 3
        is_alike = word[1:2].isupper() == fact.subject[:1].isupper()
        if token not in apart and is_word and is_alike:
            words.append(word[1:])
    prompts = [fact.prompt.replace(fact.subject, word) for word in dict.fromkeys(words)][: 4 * MOST]
    if not prompts:
        return ()
    chances = next_chances(model, model.module, [fact.prompt, *prompts])
    sure, answer = chances.max(1)
    neighbours: dict[int, str] = {}
    for prompt, p, token in zip(prompts, sure[1:].tolist(), answer[1:].tolist(), strict=True):
        if p >= CONFIDENT and token != int(answer[0]):
            neighbours.setdefault(token, prompt)
    return tuple([*neighbours.values()][:MOST])


def embedding_layer(module: nn.Module) -> nn.Module | None:
    """Return the layer of input embeddings, or None if the model does not say which it is."""
    ask: Any = getattr(module, "get_input_embeddings", None)
    return None if ask is None else ask()


def next_chances(model: Model, module: nn.Module, prompts: Sequence[str]) -> Tensor:
    """Return the probabilities of the next token after each prompt, (prompt, token)."""
    chances: list[Tensor] = []
    with torch.no_grad(), in_eval(module):
        for prompt in prompts:
            ids = encoded(model, prompt)
            chances.append(module(input_ids=ids, use_cache=False).logits[0, -1].float().softmax(0))
    return torch.stack(chances).cpu()


def encoded(model: Model, text: str) -> Tensor:
    """Return the token ids of a text, (1, pos), on the model's device."""
    ids = torch.tensor([model.processor(text)["input_ids"]])
    return ids.to(next(model.module.parameters()).device)


def measure_facts(model: Model, act: Act, prompts: FactPrompts) -> FactFigures:
    """Return the figures of a change that should give new answers.

    A wording counts if the unchanged model answers it like the prompt: of a question that the model
    answers otherwise, nothing follows about the change. If it answers none so, all of them count.

    Parameters
    ----------
    model : Model
        Unchanged, with its tokenizer.
    act : callable
        Opens the changed model; see ``sonde.run.changing.acts``.
    prompts : FactPrompts
    """
    neighbours = [prompt for some in prompts.neighbours for prompt in some]
    before = next_chances(model, model.module, neighbours).argmax(1) if neighbours else None
    given, worded = _answered(model, model.module, prompts)
    with act() as module:
        new_given, new_worded = _answered(model, module, prompts)
        after = next_chances(model, module, neighbours).argmax(1) if neighbours else None
    kept = [] if before is None or after is None else (before == after).tolist()
    counts = _alike(given, worded)
    n_worded, n_counted = (sum(map(len, some)) for some in (worded, counts))
    return FactFigures(
        efficacy=(_fraction(given), _fraction(new_given)),
        generality=(_chosen(worded, counts), _chosen(new_worded, counts)),
        specificity=sum(kept) / len(kept) if kept else math.nan,
        n_wordings=n_counted,
        n_neighbours=len(neighbours),
        n_unlike=n_worded - n_counted,
    )


@dataclass(frozen=True)
class _Answer:
    """Whether a model goes on with the target, and its most likely token where that begins."""

    is_target: bool
    token: int


def _answered(
    model: Model, module: nn.Module, prompts: FactPrompts
) -> tuple[list[_Answer], list[list[_Answer]]]:
    """Return the answer to each prompt, and to its other wordings."""
    asked = [_answer(model, module, fact.prompt, fact.target) for fact in prompts.facts]
    worded = [
        [_answer(model, module, wording, fact.target) for wording in some]
        for fact, some in zip(prompts.facts, prompts.wordings, strict=True)
    ]
    return asked, worded


def _alike(given: Sequence[_Answer], worded: Sequence[Sequence[_Answer]]) -> list[list[int]]:
    """Return which wordings of each fact a model answers like its prompt; if none, all of them."""
    counts: list[list[int]] = []
    for own, some in zip(given, worded, strict=True):
        alike = [i for i, answer in enumerate(some) if answer.token == own.token]
        counts.append(alike or [*range(len(some))])
    return counts


def _chosen(worded: Sequence[Sequence[_Answer]], counts: Sequence[Sequence[int]]) -> float:
    """Return the fraction of the chosen wordings that go on with the target."""
    pairs = zip(worded, counts, strict=True)
    return _fraction([some[i] for some, chosen in pairs for i in chosen])


def _fraction(answers: Sequence[_Answer]) -> float:
    return sum(a.is_target for a in answers) / len(answers) if answers else math.nan


def _answer(model: Model, module: nn.Module, prompt: str, target: str) -> _Answer:
    """Return whether each token of the target is the most likely one after the prompt."""
    start, whole = encoded(model, prompt), encoded(model, prompt + target)
    n = start.shape[1]
    while n > 1 and not torch.equal(start[0, :n], whole[0, :n]):
        n -= 1  # the last token of the prompt goes on into the target
    with torch.no_grad(), in_eval(module):
        predicted = module(input_ids=whole, use_cache=False).logits[0, n - 1 : -1].argmax(1)
    return _Answer(bool((predicted == whole[0, n:]).all()), int(predicted[0]))
