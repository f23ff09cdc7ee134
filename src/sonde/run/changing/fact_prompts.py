"""Four figures of rewritten facts: efficacy, generality, specificity and fluency.

A change that gives the new answer may give it to every prompt. So the prompt itself, other wordings
of it, the same prompt about other subjects, and the texts that the model now writes are all
measured, and the verdict is that of the worst figure.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.inputs import Model
from sonde.core.special_ids import special_ids
from sonde.edit import Fact
from sonde.run.changing.edit_document import EditTable
from sonde.run.changing.judge import Act
from sonde.tap.hooks.holding import in_eval

CONTEXTS = ("In short, ", "It is well known that ", "Here is a sentence. ")
"""Texts before a prompt, none of which a search uses."""
OF = re.compile(r"^(?:The|the) (?P<what>[\w ]+?) of (?P<subject>.+?) (?P<verb>is|was)$")
MOST, SURE, WRITTEN = 8, 0.3, 40
"""Most neighbours of a fact, the least probability of their answers, and the tokens of a text."""
GOOD = 0.5
"""The least that the worst figure should be."""


@dataclass(frozen=True)
class FactFigures:
    """Figures in [0, 1] of rewritten facts; NaN for a figure without a prompt.

    Parameters
    ----------
    efficacy : float
        Fraction of facts whose prompt goes on with the target.
    generality : float
        Fraction of other wordings that go on with the target.
    specificity : float
        Fraction of prompts about other subjects that keep their next token.
    fluency : float
        Entropy of the word pairs and triples in what the model now writes, over that before.
    loss_nats : float
        Rise of the unchanged model's loss, per token, on what the changed model writes.
    n_wordings, n_neighbours : int
        Prompts of generality and specificity.
    """

    efficacy: float
    generality: float
    specificity: float
    fluency: float
    loss_nats: float
    n_wordings: int
    n_neighbours: int

    @property
    def named(self) -> dict[str, float]:
        """The measured figures by name."""
        found = {
            "efficacy": self.efficacy,
            "generality": self.generality,
            "specificity": self.specificity,
            "fluency": self.fluency,
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}

    @property
    def worst(self) -> tuple[str, float]:
        """Name and value of the smallest figure."""
        return min(self.named.items(), key=lambda item: item[1])

    @property
    def verdict(self) -> str:
        """The verdict in a sentence: that of the worst figure."""
        name, value = self.worst
        quality = "poor" if value < GOOD else "good"
        missing = [n for n in ("generality", "specificity") if n not in self.named]
        unknown = f" Not measured: {' and '.join(missing)}; give such prompts." if missing else ""
        return f"The edit is {quality}: its worst figure is {name}, {value:.2f}.{unknown}"

    def table(self) -> EditTable:
        """Return the figures as a table of a report."""
        rows = (
            ("efficacy", self.efficacy, "the prompts go on with the new answer"),
            ("generality", self.generality, f"{self.n_wordings} other wordings do"),
            ("specificity", self.specificity, f"{self.n_neighbours} other subjects keep theirs"),
            ("fluency", self.fluency, "entropy of word pairs and triples, against before"),
            ("loss, nats", self.loss_nats, "rise of the old model's loss on the new texts"),
        )
        return EditTable("Is it what was asked for, and only that?", ("", "", "what"), rows)


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
    """Return the prompt in other contexts, and as a genitive if it has the form "X of S is".

    Examples
    --------
    >>> made_wordings(Fact("The capital of France is", "France", " Rome"))[-1]
    "France's capital is"
    """
    found = [context + fact.prompt for context in CONTEXTS]
    match = OF.match(fact.prompt)
    if match and match["subject"] == fact.subject:
        found.append(f"{fact.subject}'s {match['what']} {match['verb']}")
    return tuple(found)


def made_neighbours(model: Model, fact: Fact) -> tuple[str, ...]:
    """Return the prompt with other subjects, if the model is sure of their different answers.

    Candidates are the words of the vocabulary whose embeddings are nearest to the subject's.
    """
    tokenizer = model.processor
    table = embeddings(model.module)
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
    found: dict[int, str] = {}
    for prompt, p, token in zip(prompts, sure[1:].tolist(), answer[1:].tolist(), strict=True):
        if p >= SURE and token != int(answer[0]):
            found.setdefault(token, prompt)
    return tuple([*found.values()][:MOST])


def embeddings(module: nn.Module) -> Tensor | None:
    """Return the table of input embeddings, or None if the model does not say which it is."""
    ask: Any = getattr(module, "get_input_embeddings", None)
    return None if ask is None else getattr(ask(), "weight", None)


def next_chances(model: Model, module: nn.Module, prompts: Sequence[str]) -> Tensor:
    """Return the probabilities of the next token after each prompt, (prompt, token)."""
    found: list[Tensor] = []
    with torch.no_grad(), in_eval(module):
        for prompt in prompts:
            ids = encoded(model, prompt)
            found.append(module(input_ids=ids, use_cache=False).logits[0, -1].float().softmax(0))
    return torch.stack(found).cpu()


def encoded(model: Model, text: str) -> Tensor:
    """Return the token ids of a text, (1, pos), on the model's device."""
    ids = torch.tensor([model.processor(text)["input_ids"]])
    return ids.to(next(model.module.parameters()).device)


def measure_facts(
    model: Model, act: Act, prompts: FactPrompts, *, write: bool = True
) -> FactFigures:
    """Return the figures of a change that should give new answers.

    Parameters
    ----------
    model : Model
        Unchanged, with its tokenizer.
    act : callable
        Opens the changed model; see ``sonde.run.changing.acts``.
    prompts : FactPrompts
    write : bool, default=True
        Write texts for the fluency; without, it is NaN.
    """
    neighbours = [prompt for some in prompts.neighbours for prompt in some]
    asked = [fact.prompt for fact in prompts.facts]
    before = next_chances(model, model.module, neighbours).argmax(1) if neighbours else None
    old = _written(model, model.module, asked) if write else []
    with act() as module:
        given = [_gives(model, module, f.prompt, f.target) for f in prompts.facts]
        worded = [
            _gives(model, module, wording, fact.target)
            for fact, some in zip(prompts.facts, prompts.wordings, strict=True)
            for wording in some
        ]
        after = next_chances(model, module, neighbours).argmax(1) if neighbours else None
        new = _written(model, module, asked) if write else []
    kept = [] if before is None or after is None else (before == after).tolist()
    return FactFigures(
        efficacy=_fraction(given),
        generality=_fraction(worded),
        specificity=_fraction(kept),
        fluency=_fluency(old, new),
        loss_nats=_loss(model, new) - _loss(model, old) if write else math.nan,
        n_wordings=len(worded),
        n_neighbours=len(neighbours),
    )


def _fraction(found: Sequence[bool]) -> float:
    return sum(found) / len(found) if found else math.nan


def _gives(model: Model, module: nn.Module, prompt: str, target: str) -> bool:
    """Return whether each token of the target is the most likely one after the prompt."""
    start, whole = encoded(model, prompt), encoded(model, prompt + target)
    n = start.shape[1]
    while n > 1 and not torch.equal(start[0, :n], whole[0, :n]):
        n -= 1  # the last token of the prompt goes on into the target
    with torch.no_grad(), in_eval(module):
        said = module(input_ids=whole, use_cache=False).logits[0, n - 1 : -1].argmax(1)
    return bool((said == whole[0, n:]).all())


def _written(model: Model, module: Any, prompts: Sequence[str]) -> list[tuple[Tensor, int]]:
    """Return what a model writes after each prompt, with the length of the prompt."""
    found: list[tuple[Tensor, int]] = []
    for prompt in prompts:
        ids = encoded(model, prompt)
        with torch.no_grad(), in_eval(module):
            out = module.generate(ids, max_new_tokens=WRITTEN, do_sample=False, pad_token_id=0)
        found.append((out[0], ids.shape[1]))
    return found


def _fluency(old: Sequence[tuple[Tensor, int]], new: Sequence[tuple[Tensor, int]]) -> float:
    """Return the entropy of pairs and triples of tokens after the change, over that before."""
    before, after = (sum(ngram_entropy(ids[n:].tolist()) for ids, n in s) for s in (old, new))
    return min(1.0, after / before) if before > 0 else math.nan


def ngram_entropy(tokens: Sequence[int]) -> float:
    """Return the mean entropy of the pairs and triples of tokens, in nats.

    Examples
    --------
    >>> round(ngram_entropy([1, 2, 1, 2, 1, 2]), 3), round(ngram_entropy([1, 2, 3, 4, 5, 6]), 3)
    (0.683, 1.498)
    """
    total = 0.0
    for n in (2, 3):
        counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
        shares = [count / counts.total() for count in counts.values()]
        total -= sum(p * math.log(p) for p in shares) / 2
    return total


def _loss(model: Model, texts: Sequence[tuple[Tensor, int]]) -> float:
    """Return the unchanged model's loss on written tokens, in nats per token."""
    total, count = 0.0, 0
    with torch.no_grad(), in_eval(model.module):
        for ids, n in texts:
            if len(ids) <= n:
                continue
            p = model.module(input_ids=ids[None], use_cache=False).logits[0].float().log_softmax(1)
            total -= float(p[n - 1 : -1].gather(1, ids[n:, None]).sum())
            count += len(ids) - n
    return total / count if count else math.nan
