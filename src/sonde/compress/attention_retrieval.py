"""Answer from a text longer than the window, from the sentences that a question attends to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.tap import Tap

SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]+\s*|[^.!?\n]+")


@final
@dataclass(frozen=True, eq=False)
class RetrievedText:
    """Sentences of a long text that receive attention from a question.

    Parameters
    ----------
    text : str
        Retrieved sentences in their order; the question goes behind them.
    spans : tuple of (int, int)
        Start and end of each sentence in the long text, the end excluded.
    n_steps : int
        Windows that were read.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    n_steps: int


@final
@dataclass(frozen=True)
class AttentionRetrieval:
    """Read a long text window by window, and keep the sentences that a question attends to.

    Each window holds the sentences kept so far, the next ones, and the question. The attention of
    the question's tokens at one layer, mean over heads and sum over these tokens, is smoothed over
    ``smooth`` neighbours; sentences with one of the ``top`` tokens are kept whole, best first, as
    far as ``budget`` reaches.

    Range        a text that fits a window is read once. Kept sentences stay within the budget,
                 unless the best sentence alone is longer.
    Cost         one forward of a window for each window of text.
    Assumes      a causal language model whose attention finds what a question asks for.
    Differs      from the paper: sentences end at a stop or a new line; a longer sentence than the
                 room is cut.

    Parameters
    ----------
    window : int, default=256
        Tokens of one forward.
    budget : int, default=96
        Tokens that are kept between windows.
    top : int, default=32
        Number of sentences that are kept.
    layer : int, default=-1
        Layer whose attention is read; attention of the last layers fits the question best.
    smooth : int, default=3
        Odd.

    References
    ----------
    ye2025infiniretri
    """

    window: int = 256
    budget: int = 96
    top: int = 32
    layer: int = -1
    smooth: int = 3
    paper: ClassVar[str] = "ye2025infiniretri"

    def __post_init__(self) -> None:
        if not 0 < self.budget < self.window or self.top < 1 or self.smooth % 2 == 0:
            raise InputError(
                "AttentionRetrieval: expected a budget below the window, top of 1 or more and an "
                f"odd smooth, got {self.budget}, {self.window}, {self.top} and {self.smooth}."
            )

    def retrieve(self, model: Model, text: str, question: str) -> RetrievedText:
        """Return the sentences of a text that a question attends to.

        Parameters
        ----------
        model : Model
            A causal language model with a tokenizer.
        text : str
        question : str
            Read behind every window.
        """
        if model.task != "causal" or model.processor is None:
            raise InputError(
                "AttentionRetrieval: expected a causal language model with a tokenizer, got "
                f"{model.name or type(model.module).__name__}."
            )
        asked = _ids(model, question)
        room = self.window - len(asked)
        if not asked or room <= self.budget:
            raise InputError(
                f"AttentionRetrieval: expected a question of 1 to {self.window - self.budget - 1} "
                f"tokens, got {len(asked)}."
            )
        spans = [match.span() for match in SENTENCE.finditer(text)]
        tokens = [_ids(model, text[a:b])[: room - self.budget] for a, b in spans]
        kept, new, n_steps = list[int](), 0, 0
        while new < len(spans) or n_steps == 0:
            shown, size = list(kept), sum(len(tokens[i]) for i in kept)
            while new < len(spans) and size + len(tokens[new]) <= room:
                shown.append(new)
                size += len(tokens[new])
                new += 1
            n_steps += 1
            if n_steps == 1 and new == len(spans) and size <= self.budget:
                kept = shown
                break
            kept = self._kept(model, [tokens[i] for i in shown], shown, asked)
            for i in kept:  # a longer sentence would leave no room for the next one
                tokens[i] = tokens[i][: self.budget]
        chosen = tuple(spans[i] for i in kept)
        return RetrievedText("".join(text[a:b] for a, b in chosen), chosen, n_steps)

    def _kept(
        self, model: Model, tokens: Sequence[Sequence[int]], shown: Sequence[int], asked: list[int]
    ) -> list[int]:
        """Return the kept sentences of a window, in their order."""
        score = self._attended(model, [t for part in tokens for t in part], asked)
        member = torch.tensor([i for i, part in enumerate(tokens) for _ in part])
        best = score.topk(min(self.top, len(score))).indices
        order = dict.fromkeys(member[best].tolist())  # sentences by their best token
        chosen, size = list[int](), 0
        for i in order:
            if size + len(tokens[i]) <= self.budget or not chosen:
                chosen.append(i)
                size += len(tokens[i])
        return [shown[i] for i in sorted(chosen)]

    @torch.no_grad()
    def _attended(self, model: Model, context: list[int], asked: list[int]) -> Tensor:
        """Return the attention from the question to each earlier token, smoothed."""
        device = next(model.module.parameters()).device
        with Tap(model, "blocks:probs", here=True) as tap:
            model.module(torch.tensor([context + asked], device=device))
        n, size = len(context), len(context) + len(asked)
        probs: Any = [*tap.rows.values()][self.layer]  # (1, query, head and key)
        score = probs[0].double().reshape(size, -1, size)[n:, :, :n].mean(1).sum(0).cpu()
        edge = self.smooth // 2
        return avg_pool1d(score[None], self.smooth, 1, edge, count_include_pad=False)[0]


def _ids(model: Model, text: str) -> list[int]:
    tokenizer: Any = model.processor
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
