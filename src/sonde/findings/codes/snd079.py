"""SND079: differences that the tokenizer removes, and spellings that it splits."""

import html
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, final

import torch

from sonde.findings.codes.snd076 import without_accents
from sonde.findings.evidence.answers.labels import class_name
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.text_measures import SIGNS, capitals
from sonde.findings.evidence.texts.writing import Tokens, Writing, read_texts, text_writing
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command, sentence
from sonde.findings.words.text import listed, number, percent, plural, shortened
from sonde.stats.auroc import auroc
from sonde.stats.auroc_bounds import auroc_bounds

TRIED: Final = 256
LEAST: Final = 8
UNDONE: Final[Mapping[str, Callable[[str], str]]] = {
    "capitals": str.lower,
    "accents": without_accents,
    "line breaks and repeated spaces": lambda t: " ".join(t.split()),
}
SPLIT: Final[Mapping[str, tuple[str, Callable[[str], str]]]] = {
    "in small letters": ("text = text.lower()", str.lower),
    "with letters composed": (
        "text = unicodedata.normalize('NFC', text)", lambda t: unicodedata.normalize("NFC", t),
    ),
    "with ordinary letters for full-width ones": (
        "text = unicodedata.normalize('NFKC', text)", lambda t: unicodedata.normalize("NFKC", t),
    ),
    "without HTML's entities": ("text = html.unescape(text)", html.unescape),
}  # fmt: skip


@final
@dataclass(frozen=True)
class SND079(Rule):
    """Differences between texts that the tokenizer removes, and extra tokens of a spelling.

    Parameters
    ----------
    same : float, default=0.95
        Share of changed texts with equal tokens from which a change is called undone.
    ratio : float, default=1.3
        Tokens of the texts as given over those in another writing.
    told : float, default=0.7
        Lower bound of the AUROC of capitals for a class.
    merged : float, default=0.005
        Share of the texts whose tokens equal those of a text with another label.
    """

    same: float = 0.95
    ratio: float = 1.3
    told: float = 0.7
    merged: float = 0.005

    title: ClassVar[str] = "Differences that the tokenizer removes, and spellings that it splits"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("unknown tokens",)
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "A tokenizer that folds case or accents turns two different texts into one input, "
        "which no model can distinguish. Texts in capitals, or with accents as separate "
        "characters, become many rare tokens."
    )
    fix: ClassVar[str] = (
        "Use a model whose tokenizer keeps what the labels depend on, or write the texts as "
        "its training texts were written."
    )
    how: ClassVar[str] = (
        "The tokens of 256 sampled texts are compared with those of the same texts in small "
        "letters, without accents, and with single spaces: the tokenizer removes a difference "
        "if 95 % of the changed texts (at least 8) keep their tokens; that is a note. A warning "
        "if capitals are removed although they predict a class (AUROC above 0.7, lower bound at "
        "0.1 % over classes), if 0.5 % of the texts have the tokens of another text with "
        "another label, or if another spelling of the texts (small letters, NFC, NFKC, entities "
        "resolved) needs fewer tokens by a factor of 1.3."
    )
    false_positives: ClassVar[str] = "Texts in capitals by their nature, such as telegrams."
    plant: ClassVar[str] = "A tokenizer of small letters, and classes that differ in capitals."
    twin: ClassVar[str] = "A tokenizer that keeps capitals."

    def check(self, evidence: Evidence) -> Check:
        """Tokenise some texts in other spellings."""
        writing = evidence.get(text_writing)
        if not isinstance(writing, Writing):
            return self.not_applicable(writing or "the inputs are not texts")
        if writing.tokens is None:
            return self.not_applicable("these texts are not read by a tokenizer")
        lost = {name: share for name, way in UNDONE.items()
                if (share := self._undone(writing, way)) is not None}  # fmt: skip
        splits = [(n, words) for words, (_, way) in SPLIT.items()
                  if (n := _ratio(writing, way)) >= self.ratio]  # fmt: skip
        merged = _merged(evidence, writing, writing.tokens)
        telling = _told(evidence, writing) if "capitals" in lost else None
        texts: list[str] = []
        words = ""
        if splits:
            n, words = max(splits, key=lambda pair: round(pair[0], 2))
            texts.append(f"The texts need {number(n)} times as many tokens as {words}.")
        if len(merged) >= max(2, self.merged * len(writing.texts)):
            texts.append(
                f"{plural(len(merged), 'text')} of {len(writing.texts):,} have the same tokens "
                "as a text with another label."
            )
        if telling is not None and telling[2] > self.told:
            texts.append(
                f"Capitals predict {shortened(telling[0], 24)!r} (AUROC {number(telling[1])}), but "
                "the tokenizer removes them."
            )
        figure = Figure("tokens_by_writing", max((n for n, _ in splits), default=1.0), unit="ratio",
                        threshold=self.ratio, n_rows=len(writing.texts))  # fmt: skip
        if not texts and not lost:
            return self.clear(figure)
        losses = [f"{name} (in {percent(share)} of texts)" for name, share in lost.items()]
        if losses:
            texts.append(f"The tokenizer removes {listed(losses)}.")
        warns = bool(splits) or len(texts) > bool(losses)
        return self.raised_with(
            "warning" if warns else "note",
            sentence(*texts),
            figure,
            examples=writing.examples(merged),
            classes=(telling[0],) if telling is not None and telling[2] > self.told else (),
            effect=0.5 if warns else 0.05,
            common=not warns,
            fix=f"{SPLIT[words][0]}, as far as the texts allow." if splits else "",
            next=rows_command(self.code) if merged else None,
        )

    def _undone(self, writing: Writing, way: Callable[[str], str]) -> float | None:
        """Return the fraction of texts that a change alters but whose tokens stay equal."""
        assert writing.tokens is not None
        some = range(min(TRIED, len(writing.texts)))
        touched = [i for i in some if way(writing.texts[i]) != writing.texts[i]]
        if len(touched) < LEAST:
            return None
        read = read_texts(writing.tokenizer, [way(writing.texts[i]) for i in touched])
        pairs = zip(touched, read, strict=True)
        equal = sum(writing.tokens.ids[i] == ids for i, ids in pairs)
        return len(touched) / len(some) if equal >= self.same * len(touched) else None


def _ratio(writing: Writing, way: Callable[[str], str]) -> float:
    """Return the number of tokens as given, divided by that in another spelling."""
    assert writing.tokens is not None
    some = range(min(TRIED, len(writing.texts)))
    changed = [way(writing.texts[i]) for i in some]
    if changed == [writing.texts[i] for i in some]:
        return 1.0
    read = read_texts(writing.tokenizer, changed)
    return float(writing.tokens.n[: len(some)].sum() / max(sum(map(len, read)), 1))


def _merged(evidence: Evidence, writing: Writing, tokens: Tokens) -> list[int]:
    """Return the texts whose tokens equal those of a text with another label."""
    label = evidence.data.label[torch.from_numpy(writing.order)].tolist()
    by_ids: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, ids in enumerate(tokens.ids):
        if label[i] >= 0 and len(writing.texts[i]) < SIGNS:
            by_ids[tuple(ids)].append(i)
    return sorted(i for some in by_ids.values() if len({label[i] for i in some}) > 1 for i in some)


def _told(evidence: Evidence, writing: Writing) -> tuple[str, float, float] | None:
    """Return the class that capitals predict best, the AUROC and its lower bound."""
    label = evidence.data.label[torch.from_numpy(writing.order)]
    share = torch.tensor([capitals(t) for t in writing.texts], dtype=torch.float64)
    classes = torch.unique(label[label >= 0]).tolist()
    separations: list[tuple[float, float, int]] = []
    for k in classes:
        own, rest = share[label == k], share[(label >= 0) & (label != k)]
        if min(len(own), len(rest)) >= LEAST:
            area = auroc(rest, own).value
            area = max(area, 1 - area)
            low, _ = auroc_bounds(area, len(rest), len(own), 0.001 / (2 * len(classes)))
            separations.append((low, area, k))
    if not separations:
        return None
    low, area, k = max(separations)
    return class_name(evidence.data, k), area, low
