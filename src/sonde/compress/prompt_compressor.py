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

from sonde.compress._prompt_report import PromptReport, report_prompts
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.engine.progress import Bar
from sonde.stats import ridge_of_rows
from sonde.stats.divergence import kl_divergence

WORD = re.compile(r"\s*\S+")
LEAST_TOKENS = 2
"""Of a text in a window of an encoder, which also holds special tokens."""
MARKS = ".,;:!?()[]{}\"'"
UNITS = {"word": WORD, "sentence": re.compile(r"\s*\S[^.!?\n]*[.!?\n]*")}


@final
@dataclass(frozen=True, eq=False)
class CompressedPrompt:
    """A shortened text and the original positions of its words.

    Parameters
    ----------
    text : str
        Shortened text.
    words : tuple of (int, int)
        Start and end of every word in the original, the end excluded, blanks before it included.
    kept : Bool[Tensor, "word"]
        Whether each word of the original text is kept.
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


@renamed(keep="share")
@final
@dataclass(frozen=True)
class PromptCompressor:
    """Keep the most informative words, or sentences, of a text in their order.

    Without a probe a word scores its self-information: the sum over its tokens of ``-log p``, nats.
    A sentence scores the mean over its tokens, so that long sentences do not win by their length.
    ``learn`` fits a linear probe of the model's states to the effect of leaving out a word on the
    reader: the divergence of its next-token distributions over the following tokens.

    Range        exactly ``round(keep words)`` words, more where more are forced; of equal scores
                 the first are kept. ``keep=1`` gives the text back.
    Cost         one forward for half a window; ``learn`` two for each word of its texts.
    Assumes      a causal language model with a tokenizer that knows offsets. Keeping the last
                 words is often as good: ``judge`` compares on your texts.
    Differs      from LLMLingua-2: the reader itself labels words, no larger model's short texts;
                 a linear map of states that stay as they are. States of the reader see what stands
                 before a word alone; those of a bidirectional ``encoder`` see what follows, too.

    Parameters
    ----------
    keep : float, default=0.5
        Fraction of the words that stay, in (0, 1].
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

    keep: float = 0.5
    force: Sequence[str] = ()
    digits: bool = True
    window: int = 256
    unit: Literal["word", "sentence"] = "word"
    paper: ClassVar[str] = "pan2024llmlingua2"

    def __post_init__(self) -> None:
        check_ranges(self, keep="(0, 1]", window=">= 4", unit=UNITS)

    def compress(
        self,
        model: Model,
        text: str,
        probe: "KeepProbe | None" = None,
        encoder: Model | None = None,
    ) -> CompressedPrompt:
        """Return the shortened text.

        Parameters
        ----------
        model : Model
            A causal language model.
        text : str
        probe : KeepProbe, optional
            Of ``learn``, for the same model and encoder.
        encoder : Model, optional
            The model that the probe was fitted on, if it is not ``model``, which is then not run.

        Raises
        ------
        InputError
            If the probe is not of these states, an encoder comes without a probe, or a score is
            not finite.
        """
        words = tuple(match.span() for match in UNITS[self.unit].finditer(text))
        if not words:
            return CompressedPrompt(text, (), torch.zeros(0, dtype=torch.bool), torch.zeros(0))
        if encoder is not None and probe is None:
            raise InputError(
                "PromptCompressor.compress: expected a probe of the encoder's states, got none. "
                "Pass probe=compressor.learn(model, texts, encoder=encoder)."
            )
        read = self._seen(model, text, encoder)
        each = read.information if probe is None else probe.scores(read.states)
        scores = _sums(each, read, words)
        if probe is not None or self.unit == "sentence":
            scores = scores / _sums(torch.ones_like(each), read, words).clamp(min=1)
        if n_bad := int((~scores.isfinite()).sum()):
            raise InputError(
                f"PromptCompressor.compress: expected finite scores, got {n_bad} of {len(words)} "
                "that are not. States or weights of the model, or the probe, hold NaN or infinity."
            )
        forced = torch.tensor([self._is_forced(text[a:b]) for a, b in words])
        kept = forced.clone()
        order = scores.masked_fill(forced, torch.inf).argsort(descending=True, stable=True)
        kept[order[: max(round(self.keep * len(words)), 1)]] = True
        parts = [text[a:b] for (a, b), keep in zip(words, kept.tolist(), strict=True) if keep]
        end = text[words[-1][1] :] if bool(kept.all()) else ""
        return CompressedPrompt("".join(parts) + end, words, kept, scores)

    def judge(
        self,
        model: Model,
        texts: Sequence[str],
        probe: "KeepProbe | None" = None,
        encoder: Model | None = None,
        *,
        horizon: int = 32,
        progress: bool = True,
    ) -> PromptReport:
        """Return the loss after shortened prompts, beside first, last and random words.

        The end of each text is what the model has to predict, and the text before is the prompt.
        ``verdict`` says which way to shorten such prompts.

        Parameters
        ----------
        model : Model
            A causal language model with a fast tokenizer, which reads the prompts.
        texts : sequence of str
            At least two texts of the kind to be shortened, other than those that fitted the probe.
        probe : KeepProbe, optional
            Of ``learn``, for the same model and encoder.
        encoder : Model, optional
            The model that the probe was fitted on, if it is not ``model``.
        horizon : int, default=32
            Tokens at the end of each text that are predicted.
        progress : bool, default=True
            Whether a progress bar is shown on stderr.

        Raises
        ------
        InputError
            If fewer than two texts are longer than ``horizon``.
        """
        return report_prompts(
            model,
            texts,
            lambda text: self.compress(model, text, probe, encoder),
            horizon,
            progress=progress,
        )

    def learn(
        self,
        model: Model,
        texts: Sequence[str],
        horizon: int = 64,
        progress: bool = True,
        encoder: Model | None = None,
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
        encoder : Model, optional
            A model with a fast tokenizer, such as a bidirectional one, whose last states the probe
            reads in place of those of ``model``.
        """
        rows, labels = list[Tensor](), list[Tensor]()
        with Bar("words of texts", len(texts), progress) as bar:
            for text in texts:
                cut = _cut(model, text, self.window)
                words = tuple(match.span() for match in WORD.finditer(cut))[:-1]
                if len(words) > 1:
                    read = self._seen(model, cut, encoder)
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
        states = torch.cat(rows)
        if not bool(states.isfinite().all() and torch.cat(labels).isfinite().all()):
            raise InputError(
                "PromptCompressor.learn: expected finite states and answers, got NaN or infinity. "
                "Check the weights of the model and of the encoder."
            )
        weight, bias = ridge_of_rows(states, torch.cat(ranked)[:, None])
        return KeepProbe(weight[:, 0], float(bias[0]), len(torch.cat(ranked)))

    def _seen(self, model: Model, text: str, encoder: Model | None) -> "_Read":
        if encoder is None:
            return _read(model, text, self.window)
        return _encoded(encoder, text, self.window)

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
        Weight of the linear map.
    bias : float
        Bias of the linear map.
    n : int
        Words that it was fitted on.
    """

    weight: Float[Tensor, "dim"]
    bias: float
    n: int

    def scores(self, states: Float[Tensor, "token dim"]) -> Float[Tensor, "token"]:
        """Return the importance of each token.

        Raises
        ------
        InputError
            If the states have another width.
        """
        if states.shape[1] != len(self.weight):
            raise InputError(
                f"KeepProbe: expected states of width {len(self.weight)}, got {states.shape[1]}. "
                "Pass the model, or the encoder, that the probe was fitted on."
            )
        return states @ self.weight + self.bias


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
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    return torch.tensor([encoded["input_ids"]]), [a for a, _ in encoded["offset_mapping"]]


@torch.no_grad()
def _read(model: Model, text: str, window: int) -> _Read:
    ids, starts = _tokens(model, text)
    device, n, half = next(model.module.parameters()).device, ids.shape[1], window // 2
    states, information = list[Tensor](), list[Tensor]()
    for first in range(0, max(n - half, 1), half):
        part = ids[:, first : first + window].to(device)
        output = model.module(part, output_hidden_states=True)
        log = output.logits[0].double().log_softmax(-1)
        own = -log[:-1].gather(1, part[0, 1:, None])[:, 0]
        first_token = own.new_full((1,), math.log(log.shape[1]))  # nothing predicts it
        own_information = torch.cat([first_token, own])
        new = slice(half if first else 0, None)
        states.append(output.hidden_states[-1][0].double()[new].cpu())
        information.append(own_information[new].cpu())
    return _Read(torch.cat(states)[:n], torch.cat(information)[:n], starts)


@torch.no_grad()
def _encoded(encoder: Model, text: str, window: int) -> _Read:
    """Return the last states of all tokens, each from the window in which it is most central."""
    tokenizer: Any = encoder.processor
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "PromptCompressor: expected an encoder with a fast tokenizer, got "
            f"{encoder.name or type(encoder.module).__name__}."
        )
    window = min(window, tokenizer.model_max_length)
    room = window - tokenizer.num_special_tokens_to_add()
    if room < LEAST_TOKENS:
        raise InputError(
            f"PromptCompressor: expected window >= {window - room + LEAST_TOKENS} for this "
            f"encoder, got {window}. Special tokens take {window - room} places of a window."
        )
    encoded = tokenizer(
        text,
        truncation=True,
        max_length=window,
        stride=room // 2,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    device, best = next(encoder.module.parameters()).device, dict[int, tuple[int, int, Tensor]]()
    for k, (ids, where, special) in enumerate(
        zip(
            encoded["input_ids"],
            encoded["offset_mapping"],
            encoded["special_tokens_mask"],
            strict=True,
        )
    ):
        part = torch.tensor([ids], device=device)
        given = {"attention_mask": torch.ones_like(part), "output_hidden_states": True}
        states = encoder.module(part, **given).hidden_states[-1][0].double().cpu()
        own = [i for i, no in enumerate(special) if not no]
        for place, i in enumerate(own):
            token, edge = k * (room - room // 2) + place, min(place, len(own) - 1 - place)
            if edge >= best.get(token, (-1,))[0]:
                best[token] = edge, where[i][0], states[i]
    in_order = [best[token] for token in sorted(best)]
    unknown = torch.zeros(len(in_order), dtype=torch.float64)
    return _Read(torch.stack([x for *_, x in in_order]), unknown, [a for _, a, _ in in_order])


def _sums(values: Tensor, read: _Read, words: Sequence[tuple[int, int]]) -> Tensor:
    """Return the sum over the tokens of each word; a token belongs to the word where it begins."""
    ends = torch.tensor([b for _, b in words])
    member = torch.searchsorted(ends, torch.tensor(read.starts), right=True)
    inside = member < len(words)
    totals = torch.zeros(len(words), dtype=torch.float64)
    return totals.index_add(0, member[inside], values.double()[inside])


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
