"""The text of an answer while its tokens arrive: whole characters, stop texts, probabilities."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

UNFINISHED = "\ufffd"
"""What a tokenizer decodes from a part of a character."""


@final
@dataclass(frozen=True)
class TokenProbability:
    """A generated token with its log probability and those of the most likely tokens.

    Parameters
    ----------
    token : int
    logprob : float
        Of the model's own distribution, before temperature.
    likely : tuple of (int, float)
        The most likely tokens with their log probabilities, the likeliest first.
    """

    token: int
    logprob: float
    likely: tuple[tuple[int, float], ...]


@final
class TextPieces:
    """Streamer of ``generate`` that turns tokens into pieces of text, and says when to stop.

    Parameters
    ----------
    decode : callable
        From a list of token ids to their text.
    ends : sequence of int
        Tokens that end a text.
    stop : tuple of str
        Texts before which the answer ends.
    n_likely : int or None
        How many likely tokens are kept beside each token; None keeps no probabilities.
    on_piece : callable, optional
        Called with each new piece of text.

    Attributes
    ----------
    ids : list of int
    text : str
        The answer so far, without what may be the beginning of a stop text.
    stopped : bool
        Whether a stop text or an end token ended the answer.
    cancelled : threading.Event
        Set by whoever no longer waits for the answer.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        ends: Sequence[int],
        stop: tuple[str, ...],
        n_likely: int | None,
        on_piece: Callable[[str], None] | None = None,
    ) -> None:
        self._decode, self._ends, self._stop = decode, frozenset(ends), stop
        self._n_likely, self._on_piece = n_likely, on_piece
        self.ids: list[int] = []
        self.text, self.stopped, self.cancelled = "", False, threading.Event()
        self.probabilities: list[TokenProbability] = []
        self._raw, self._from, self._until = "", 0, 0
        self._scores: Tensor | None = None
        self._saw_prompt = False

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Keep the scores of the next token; as a logits processor of ``generate``."""
        if self._n_likely is not None:
            self._scores = scores[0].float().log_softmax(0)
        return scores

    def put(self, tokens: Tensor) -> None:
        """Take the prompt, then one token at a time; as a streamer of ``generate``."""
        if not self._saw_prompt:
            self._saw_prompt = True
            return
        token = int(tokens.reshape(-1)[0])
        self.add(token, self._probability(token))

    def add(self, token: int, probability: TokenProbability | None = None) -> None:
        """Take one generated token."""
        if self.is_over:  # one token more than is needed may have been chosen
            return
        self.ids.append(token)
        if probability is not None:
            self.probabilities.append(probability)
        if token in self._ends:
            self.stopped = True
            self._release(whole=True)
            return
        self._raw += self._new_text()
        self._release(whole=False)

    def end(self) -> None:
        """Release the text that was held back."""
        if not self.stopped:
            self._raw += self._decode(self.ids[self._from :])[self._held :]
            self._release(whole=True)

    @property
    def is_over(self) -> bool:
        """True if no further token is wanted."""
        return self.stopped or self.cancelled.is_set()

    @property
    def _held(self) -> int:
        return len(self._decode(self.ids[self._from : self._until]))

    def _new_text(self) -> str:
        """Return the whole characters that the last token completes."""
        before = self._decode(self.ids[self._from : self._until])
        after = self._decode(self.ids[self._from :])
        if len(after) <= len(before) or after.endswith(UNFINISHED):
            return ""
        self._from, self._until = self._until, len(self.ids)
        return after[len(before) :]

    def _release(self, whole: bool) -> None:
        """Hand on the text up to a stop text, or up to what may become one."""
        at = min((i for s in self._stop if (i := self._raw.find(s)) >= 0), default=None)
        if at is not None:
            self._raw, self.stopped = self._raw[:at], True
        safe = len(self._raw)
        if at is None and not whole:
            safe -= max((_overlap(self._raw, s) for s in self._stop), default=0)
        piece, self.text = self._raw[len(self.text) : safe], self._raw[:safe]
        if piece and self._on_piece is not None:
            self._on_piece(piece)

    def _probability(self, token: int) -> TokenProbability | None:
        if self._scores is None or self._n_likely is None:
            return None
        best = self._scores.topk(self._n_likely) if self._n_likely else None
        likely = (
            () if best is None else zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        return TokenProbability(token, float(self._scores[token]), tuple(likely))


@final
class StopWhenOver:
    """Stopping criterion of ``generate`` that ends with the pieces of a text."""

    def __init__(self, pieces: TextPieces) -> None:
        self._pieces = pieces

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return whether each text of the batch is over."""
        return torch.full((len(ids),), self._pieces.is_over, device=ids.device)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest beginning of a stop text at the end of a text."""
    return next(
        (n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0
    )
