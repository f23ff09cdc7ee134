"""The margin between two answers of several tokens."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.wording import plural
from sonde.explain.objective import FixedObjective, Objective
from sonde.tap.hooks.outputs import find


@final
@dataclass(frozen=True)
class AnswerMargin:
    """Log-probability of one answer of several tokens minus that of another, after the same text.

    Every pair is two examples of a language model: the text with the answer, then the text with
    the other one.

    Parameters
    ----------
    length, other : int
        Tokens of the answer, and of the other one.

    Examples
    --------
    >>> logits, ids = torch.zeros(2, 4, 5), torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]])
    >>> mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    >>> round(float(AnswerMargin(2, 1).fixed(logits, ids, mask).of(logits)), 4)  # 1 / 5 less
    -1.6094
    """

    length: int
    other: int

    @property
    def name(self) -> str:
        """Name of the answer in results."""
        return (
            f"log-probability of the {plural(self.length, 'token')} of the answer minus that of "
            f"the {plural(self.other, 'token')} of the other answer"
        )

    def fixed(
        self, outputs: Any, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> "FixedAnswers":
        """Return the margin with the tokens of the answers.

        Raises
        ------
        InputError
            If examples do not come in twos, or an answer is longer than its text.
        """
        logits = _logits(outputs)
        if tokens is None:
            raise InputError(
                "AnswerMargin: expected tokenised texts (input_ids), got inputs without tokens."
            )
        if len(logits) % 2:
            raise InputError(
                "AnswerMargin: expected pairs of tokenised texts, the first with the correct "
                f"answer and the second with the wrong answer, got {len(logits)} examples."
            )
        lengths = (self.length, self.other)
        both = [
            Objective("answer", length=n).fixed(
                logits[i::2], tokens[i::2], None if mask is None else mask[i::2]
            )
            for i, n in enumerate(lengths)
        ]
        return FixedAnswers(both[0], both[1])


@final
@dataclass(frozen=True, eq=False)
class FixedAnswers:
    """A margin of answers, with the answers' tokens."""

    first: FixedObjective
    second: FixedObjective

    def tiled(self, times: int) -> "FixedAnswers":
        """Return the margin of all examples, with their batch repeated."""
        return FixedAnswers(self.first.tiled(times), self.second.tiled(times))

    def of(self, outputs: Any) -> Float[Tensor, "pair"]:
        """Return the margin for each pair."""
        logits = _logits(outputs)
        return self.first.of(logits[0::2]) - self.second.of(logits[1::2])

    def log_probs(self, outputs: Any) -> Float[Tensor, "answer class"]:
        """Return the log-probabilities at the positions that predict the answers."""
        logits = _logits(outputs)
        parts = (self.first.log_probs(logits[0::2]), self.second.log_probs(logits[1::2]))
        return torch.cat(parts)


def _logits(outputs: Any) -> Tensor:
    logits = find(outputs, "logits")
    logits = find(outputs, None) if logits is None else logits
    if logits is None:
        raise InputError(
            "AnswerMargin: expected a model that returns logits, got a model without them."
        )
    return logits
