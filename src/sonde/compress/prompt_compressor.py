"""Shorten prompts by removing whole words, the least informative words first."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.engine.progress import Bar
from sonde.stats import ridge_of_rows
from sonde.stats.divergence import kl_divergence

WORD = re.compile(r"\s*\S+")
MARKS = ".,;:!?()[]{}\"'"
UNITS = {"word": WORD, "sentence": re.compile(r"\s*\S[^.!?\n]*[.!?\n]*")}


@final
@dataclass(frozen=True, eq=False)
class CompressedPrompt:
    """A shortened text and the original positions of its words.

    Parameters
    ----------
    text : str
    words : tuple of (int, int)
        Start and end of every word in the original, the end excluded, blanks before it included.
    kept : Bool[Tensor, "word"]
    scores : Float[Tensor, "word"]
        Higher scores were kept first.
    """

    text: str
    words: tuple[tuple[int, int], ...]
    kept: Bool[Tensor, "word"]
    scores: Float[Tensor, "word"]

    @property
    def share(self) -> float:
        """Fraction of the words that were kept; larger than requested if words were forced."""
        return float(self.kept.double().mean()) if len(self.kept) else 1.0


@final
@dataclass(frozen=True)
class PromptCompressor:
    """Keep the most informative words, or sentences, of a text in their order.

    Without a probe a word scores its self-information: the sum over its tokens of ``-log p``, nats.
    A sentence scores the mean over its tokens, so that long sentences do not win by their length.
    ``learn`` fits a linear probe of the model's states to the effect of leaving out a word on the
    reader: the divergence of its next-token distributions over the following tokens.

    Range        exactly ``round(share words)`` words, more where more are forced; of equal scores
                 the first are kept. ``share=1`` gives the text back.
    Cost         one forward for half a window; ``learn`` two for each word of its texts.
    Assumes      a causal language model with a tokenizer that knows offsets.
    Differs      from LLMLingua-2: the reader itself labels words, no larger model's short texts;
                 states see what stands before a word alone.

    Parameters
    ----------
    share : float, default=0.5
        Of the words that are kept.
    force : sequence of str, default=()
        Words that are always kept, without the punctuation around them.
    digits : bool, default=True
        Always keep words with digits.
    window : int, default=256
        Tokens that are read at once; half of them are context.
    unit : {"word", "sentence"}, default="word"
        What is kept or left out as a whole.

    References
    ----------
    pan2024llmlingua2, li2023selective
    """

    share: float = 0.5
    force: Sequence[str] = ()
    digits: bool = True
    window: int = 256
    unit: Literal["word", "sentence"] = "word"
    paper: ClassVar[str] = "pan2024llmlingua2"

    def __post_init__(self) -> None:
        check_ranges(self, share="(0, 1]", window=">= 4", unit=UNITS)

    def compress(self, model: Model, text: str, probe: "KeepProbe | None" = None) -> Any:
        """Return the shortened text.

        Parameters
        ----------
        model : Model
            A causal language model.
        text : str
        probe : KeepProbe, optional
            Of ``learn``, for the same model.
        """
        words = tuple(found.span() for found in UNITS[self.unit].finditer(text))
        if not words:
            return CompressedPrompt(text, (), torch.zeros(0, dtype=torch.bool), torch.zeros(0))
        read = _read(model, text, self.window)
        each = read.information if probe is None else read.states @ probe.weight + probe.bias
        scores = _sums(each, read, words)
        if probe is not None or self.unit == "sentence":
            scores = scores / _sums(torch.ones_like(each), read, words).clamp(min=1)
        forced = torch.tensor([self._is_forced(text[a:b]) for a, b in words])
        kept = forced.clone()
        order = scores.masked_fill(forced, torch.inf).argsort(descending=True, stable=True)
        kept[order[: max(round(self.share * len(words)), 1)]] = True
        parts = [text[a:b] for (a, b), keep in zip(words, kept.tolist(), strict=True) if keep]
        end = text[words[-1][1] :] if bool(kept.all()) else ""
        return CompressedPrompt("".join(parts) + end, words, kept, scores)

    def learn(
        self, model: Model, texts: Sequence[str], horizon: int = 64, progress: bool = True
    ) -> "KeepProbe":
        """Fit a probe that predicts from a word's states how much the reader needs the word.

        Parameters
        ----------
        model : Model
        texts : sequence of str
            Of the kind to be shortened; text beyond the first window is not read.
        horizon : int, default=64
            Tokens behind a word on which the effect of leaving it out is measured.
        progress : bool, default=True
        """
        rows, labels = list[Tensor](), list[Tensor]()
        with Bar("words of texts", len(texts), progress) as bar:
            for text in texts:
                cut = _cut(model, text, self.window)
                words = tuple(found.span() for found in WORD.finditer(cut))[:-1]
                if len(words) > 1:
                    read = _read(model, cut, self.window)
                    count = _sums(torch.ones(len(read.starts), dtype=torch.float64), read, words)
                    sums = [_sums(unit, read, words) for unit in read.states.T]
                    rows.append((torch.stack(sums) / count).T)
                    moved = [_moved(model, cut, word, horizon) for word in words]
                    labels.append(torch.tensor(moved).double())
                bar.advance(1)
        if not rows:
            raise InputError("PromptCompressor.learn: expected texts of several words, got none.")
        # ranks within a text, so that texts count alike; equal labels share theirs
        ranked = [torch.from_numpy((rankdata(x) - 1) / (len(x) - 1)) for x in labels]
        weight, bias = ridge_of_rows(torch.cat(rows), torch.cat(ranked)[:, None])
        return KeepProbe(weight[:, 0], float(bias[0]), len(torch.cat(ranked)))

    def _is_forced(self, word: str) -> bool:
        forced = any(w.strip(MARKS) in self.force for w in word.split())
        return forced or (self.digits and any(c.isdigit() for c in word))


@final
@dataclass(frozen=True, eq=False)
class KeepProbe:
    """A linear map from a token's state to the importance of its word.

    Parameters
    ----------
    weight : Float[Tensor, "dim"]
    bias : float
    n : int
        Words that it was fitted on.
    """

    weight: Float[Tensor, "dim"]
    bias: float
    n: int


@dataclass(frozen=True, eq=False)
class _Read:
    """A model's reading of a text: states, information and start characters of its tokens."""

    states: Float[Tensor, "token dim"]
    information: Float[Tensor, "token"]
    starts: list[int]


def _tokens(model: Model, text: str) -> tuple[Tensor, list[int]]:
    tokenizer: Any = model.processor
    if model.task != "causal" or not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "PromptCompressor: expected a causal language model with a fast tokenizer, got "
            f"{model.name or type(model.module).__name__}."
        )
    found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    return torch.tensor([found["input_ids"]]), [a for a, _ in found["offset_mapping"]]


@torch.no_grad()
def _read(model: Model, text: str, window: int) -> _Read:
    ids, starts = _tokens(model, text)
    device, n, half = next(model.module.parameters()).device, ids.shape[1], window // 2
    states, information = list[Tensor](), list[Tensor]()
    for first in range(0, max(n - half, 1), half):
        part = ids[:, first : first + window].to(device)
        found = model.module(part, output_hidden_states=True)
        log = found.logits[0].double().log_softmax(-1)
        own = -log[:-1].gather(1, part[0, 1:, None])[:, 0]
        told = torch.cat([own.new_full((1,), math.log(log.shape[1])), own])  # the first is unknown
        new = slice(half if first else 0, None)
        states.append(found.hidden_states[-1][0].double()[new].cpu())
        information.append(told[new].cpu())
    return _Read(torch.cat(states)[:n], torch.cat(information)[:n], starts)


def _sums(values: Tensor, read: _Read, words: Sequence[tuple[int, int]]) -> Tensor:
    """Return the sum over the tokens of each word; a token belongs to the word where it begins."""
    ends = torch.tensor([b for _, b in words])
    member = torch.searchsorted(ends, torch.tensor(read.starts), right=True)
    inside = member < len(words)
    found = torch.zeros(len(words), dtype=torch.float64)
    return found.index_add(0, member[inside], values.double()[inside])


def _cut(model: Model, text: str, window: int) -> str:
    starts = _tokens(model, text)[1]
    return text if len(starts) <= window else text[: starts[window]]


@torch.no_grad()
def _moved(model: Model, text: str, word: tuple[int, int], horizon: int) -> float:
    """Return the divergence of the next-token distributions if a word is removed, in nats."""
    device, sides = next(model.module.parameters()).device, list[Tensor]()
    behind = len(_tokens(model, text[word[1] :])[1])
    for given in (text, text[: word[0]] + text[word[1] :]):
        ids = _tokens(model, given)[0].to(device)
        log = model.module(ids).logits[0].double().log_softmax(-1)
        sides.append(log[len(log) - behind :][:horizon])
    return float(kl_divergence(sides[0], sides[1]).mean())
