"""SND066: kinds of tokens that a language model predicts far too often or too rarely."""

import math
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.findings.evidence.answers.labels import LEAST_ROWS
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import LensEvidence, TextAnswers, measure_lens
from sonde.findings.evidence.texts.read_in_a_row import ReadInARow, read_in_a_row
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import sentence, too_few
from sonde.findings.words.text import number, percent, plural

KINDS: Final[Mapping[str, Callable[[str], bool]]] = {
    "capital letters": lambda w: any(c.isupper() for c in w),
    "small letters": lambda w: any(c.islower() for c in w),
    "digits": lambda w: any(c.isdigit() for c in w),
    "line breaks": lambda w: "\n" in w,
    "carriage returns": lambda w: "\r" in w,
    "tabs": lambda w: "\t" in w,
    "blanks": lambda w: " " in w,
    "several blanks": lambda w: "  " in w,
    "letters beyond ASCII": lambda w: any(ord(c) > 127 and c.isalpha() for c in w),
    "non-ASCII symbols or bytes": lambda w: any(ord(c) > 127 and not c.isalpha() for c in w),
    "punctuation": lambda w: any(c in string.punctuation for c in w),
}


@final
@dataclass(frozen=True)
class SND066(Rule):
    """Predicted frequency of a kind of token, compared with its actual frequency.

    Parameters
    ----------
    ratio : float, default=3.0
        Least factor between both shares.
    note, warning : float
        Least cost of the difference of both shares per token of the texts, in nats.
    part : float, default=0.3
        Least share of the model's lag behind counts of tokens, if it lags.
    errors : float, default=4.0
        Least difference in standard errors over texts.
    left : float, default=0.25
        Least share of the cost that is left after texts of the same form.
    """

    ratio: float = 3.0
    note: float = 0.004
    warning: float = 0.01
    part: float = 0.3
    errors: float = 4.0
    left: float = 0.25

    title: ClassVar[str] = "The model expects a kind of token that the texts do not have"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("unknown tokens",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND029", "SND037", "SND064", "SND067"), levels=SERIOUS),
    )
    why: ClassVar[str] = (
        "Texts that lost their capital letters, line breaks or special characters, or that "
        "were escaped or read in another encoding, raise the loss of a language model without "
        "an error."
    )
    fix: ClassVar[str] = "Read the texts again, in the way the model's training texts were read."
    how: ClassVar[str] = (
        "On 48 texts, the model's next-token probabilities are summed over kinds of tokens "
        "(capital and small letters, digits, line breaks, tabs, spaces, non-ASCII letters and "
        "symbols, each punctuation mark, unknown tokens) and compared with the frequency of "
        "each kind. For texts like its training texts, a model is correct on average. Raised if "
        "one of the two frequencies is 3 times the other, the difference is 4 standard errors "
        "over texts, and the mismatch costs 0.01 nats per token (Kullback-Leibler divergence of "
        "the two frequencies; a note from 0.004 on), or 30 % of the loss that the model has "
        "above counts of tokens. Where counts of the other texts predict better than the model, "
        "the texts may be of one form: the later ones are read after the others too, and a kind "
        "whose mismatch then costs less than a quarter is left out."
    )
    false_positives: ClassVar[str] = "Texts that differ from the model's training texts."
    plant: ClassVar[str] = "The shipped language model over texts without line breaks."
    twin: ClassVar[str] = "The same texts with their line breaks."

    def check(self, evidence: Evidence) -> Check:
        """Compare predicted with actual frequencies, for each kind of token."""
        lens = evidence.get(measure_lens)
        if not isinstance(lens, LensEvidence) or lens.texts is None or not lens.texts.words:
            return self.not_applicable(
                "the model does not predict next tokens, or its tokens have no text"
            )
        if lens.n_groups < LEAST_ROWS:
            return too_few(self, lens.n_groups, LEAST_ROWS, "texts")
        kinds = sorted(_kinds(lens.texts), key=lambda k: -k.cost)
        worst = kinds[0]
        figure = Figure(
            "expectation_cost", worst.cost, unit="nats", null=0.0, threshold=self.note,
            n_rows=lens.n_rows, n_groups=len(lens.texts.ids),
        )  # fmt: skip
        odd = [k for k in kinds if self._is_odd(k)]
        if odd and not lens.beats_counts:
            odd = self._left_in_a_row(odd, lens.texts, evidence)
            if not odd:
                return self.clear(
                    figure, "the model expects other kinds once it has read some of the texts"
                )
        cost, lag = sum(k.cost for k in odd), lens.final - lens.by_counts
        if not odd or cost < self.part * lag:
            return self.clear(
                figure, "the model's loss is high for all kinds of tokens" if odd else ""
            )
        first = odd[0]
        text = (
            f"The model expects {first.name} at {percent(first.said)} of positions, the texts "
            f"have them at {percent(first.seen)}"
        )
        more = [f"{k.name} {percent(k.said)} and {percent(k.seen)}" for k in odd[1:3]]
        rest = f" ({'; '.join(more)})" if more else ""
        return self.raised_with(
            "warning" if first.cost >= self.warning else "note",
            sentence(f"{text}{rest}.", f"{plural(len(lens.texts.ids), 'text')}."),
            figure,
            effect=min(1.0, 10 * first.cost),
            fix=_fix(first, number(cost)),
        )

    def _is_odd(self, kind: "_Kind") -> bool:
        low, high = sorted((kind.said, kind.seen))
        return kind.cost >= self.note and high >= self.ratio * low and kind.z >= self.errors

    def _left_in_a_row(
        self, odd: list["_Kind"], texts: TextAnswers, evidence: Evidence
    ) -> list["_Kind"]:
        """Return the kinds that the model still misjudges after texts of the same form."""
        row = evidence.get(read_in_a_row)
        if row is None:
            return odd
        after = {kind.name: kind.cost for kind in _kinds(texts, row)}
        return [k for k in odd if after.get(k.name, 0.0) > max(self.note, self.left * k.cost)]


def _fix(kind: "_Kind", cost: str) -> str:
    lost = f"Check whether the texts lost their {kind.name} on the way to the model"
    new = f"The training texts had few {kind.name}: check why these texts have them"
    return (
        f"{lost if kind.seen < kind.said else new}. The difference costs {cost} nats per token at "
        "least."
    )


@dataclass(frozen=True)
class _Kind:
    """A kind of token: predicted and actual frequency, cost of the difference, and z score."""

    name: str
    said: float
    seen: float
    cost: float
    z: float


def _kinds(texts: TextAnswers, row: ReadInARow | None = None) -> Iterator[_Kind]:
    """Yield each kind of token, in texts that are read alone or one after another."""
    seen, predicted = (texts.seen, texts.said) if row is None else (row.seen, row.said)
    n = float(predicted.sum())
    members: dict[str, list[int]] = {}
    for i, word in texts.words.items():
        if i in texts.special:  # the end of a text is expected, and comes in no text
            continue
        for name in ["unknown tokens"] if i == texts.unknown else kinds_of(word):
            members.setdefault(name, []).append(i)
    for name, ids in members.items():
        at = torch.tensor(ids)
        expected, came = predicted[:, at].sum(1).double(), seen[:, at].sum(1).double()
        a, b = float(expected.sum()) / n, float(came.sum()) / n
        yield _Kind(name, a, b, _divergence(b, a), _z(came - expected, expected))


def _z(gap: Float[Tensor, "text"], expected: Float[Tensor, "text"]) -> float:
    """Return the summed difference over its standard error: over texts, or binomial if larger."""
    spread = max(float(gap.square().sum()), float(expected.sum()), 1e-12)
    return abs(float(gap.sum())) / math.sqrt(spread)


def _divergence(seen: float, expected: float) -> float:
    """Return the Kullback-Leibler divergence of two frequencies, in nats."""
    expected = min(max(expected, 1e-9), 1 - 1e-9)
    parts = ((seen, expected), (1 - seen, 1 - expected))
    return sum(p * math.log(p / q) for p, q in parts if p > 0)


def kinds_of(word: str) -> list[str]:
    """Return the kinds of a token; each punctuation mark is a kind of its own.

    Examples
    --------
    >>> kinds_of(" The"), kinds_of("&")
    (['capital letters', 'small letters', 'blanks'], ['punctuation', 'signs &'])
    """
    kinds = [name for name, is_kind in KINDS.items() if is_kind(word)]
    return kinds + [f"signs {c}" for c in string.punctuation if c in word]
