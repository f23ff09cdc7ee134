"""SND076: tokens for characters or words that the tokenizer does not know."""

import html
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, final

import numpy as np

from sonde.findings.evidence.inputs.extreme_class import largest_class
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.writing import Tokens, Writing, text_writing, tokens_of
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command, sentence
from sonde.findings.words.text import percent, plural

TRIED: Final = 256


def without_accents(text: str) -> str:
    """Return a text without the accents of its letters."""
    apart = unicodedata.normalize("NFD", text)
    return "".join(c for c in apart if not unicodedata.combining(c))


WAYS: Final[Mapping[str, Callable[[str], str]]] = {
    "text = text.lower()": str.lower,
    "text = unicodedata.normalize('NFC', text)": lambda t: unicodedata.normalize("NFC", t),
    "text = unicodedata.normalize('NFKC', text)": lambda t: unicodedata.normalize("NFKC", t),
    "text = html.unescape(text)": html.unescape,
    "remove the accents (NFD, without combining characters)": without_accents,
}


@final
@dataclass(frozen=True)
class SND076(Rule):
    """Fraction of all tokens that are unknown, or are single bytes of a character.

    Parameters
    ----------
    note, warning : float
        Of unknown tokens.
    note_bytes, warning_bytes : float
        Of tokens that are a byte, or some bytes, of a sign.
    """

    note: float = 0.005
    warning: float = 0.05
    note_bytes: float = 0.05
    warning_bytes: float = 0.3

    title: ClassVar[str] = "Texts with unknown tokens"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("unknown tokens",)
    breaks: ClassVar[Breaks] = "all answers"
    why: ClassVar[str] = (
        "All unknown characters become one token, so the model cannot distinguish them. A "
        "character split "
        "into bytes becomes several rare tokens that few models have learned."
    )
    fix: ClassVar[str] = (
        "Write the texts as the tokenizer's training texts were written (case, accents, "
        "encoding), or use a model whose tokenizer covers their language."
    )
    how: ClassVar[str] = (
        "The tokenizer reads the first 2,000 characters of at most 2,048 sampled texts. Unknown "
        "tokens are a note from 0.5 % of all tokens and a warning from 5 %; tokens that are a "
        "byte or a part of a character (<0xE2>, or undecodable alone) are a note from 5 % and a "
        "warning from 30 %. Other ways to write the texts are tried on 256 of them; a way that "
        "halves the fraction of such tokens is named."
    )
    false_positives: ClassVar[str] = "Byte-level vocabularies trained on few texts of a script."
    plant: ClassVar[str] = "Texts in capitals, read by a tokenizer of words in small letters."
    twin: ClassVar[str] = "The same texts in small letters."

    def check(self, evidence: Evidence) -> Check:
        """Count unknown tokens and bytes."""
        writing = evidence.get(text_writing)
        if not isinstance(writing, Writing):
            return self.not_applicable(writing or "the inputs are not texts")
        if writing.tokens is None:
            return self.not_applicable("the tokenizer of these texts has no unknown token")
        tokens = writing.tokens
        shares = tokens.share(tokens.unknown), tokens.share(tokens.in_bytes)
        is_bytes = shares[0] < self.note and shares[1] >= self.note_bytes
        values, share = (tokens.in_bytes, shares[1]) if is_bytes else (tokens.unknown, shares[0])
        limits = (self.note_bytes, self.warning_bytes) if is_bytes else (self.note, self.warning)
        level = "warning" if share >= limits[1] else "note"
        figure = Figure(
            "byte_tokens" if is_bytes else "unknown_tokens", share, unit="share",
            threshold=limits[level == "warning"], n_rows=len(writing.texts),
        )  # fmt: skip
        if share < limits[0]:
            return self.clear(figure)
        what = "are single bytes of characters" if is_bytes else "are unknown to the tokenizer"
        text = (
            f"{percent(share)} of {plural(int(tokens.n.sum()), 'token')} in "
            f"{plural(len(writing.texts), 'text')} {what}."
        )
        one = largest_class(evidence.data, writing.order, values)
        worst = np.argsort(-values, kind="stable")
        worst = worst[values[worst] > 0]
        return self.raised_with(
            level,
            sentence(text, "" if one is None else one.said),
            figure,
            examples=writing.examples(worst),
            figures=tuple(values[worst].tolist()),
            classes=() if one is None else (one.name,),
            effect=min(1.0, share),
            fix=_better_way(writing, is_bytes),
            next=rows_command(self.code),
        )


def _better_way(writing: Writing, is_bytes: bool) -> str:
    """Describe the spelling that at least halves these tokens; empty if there is none."""
    texts = writing.texts[:TRIED]

    def left(way: Callable[[str], str]) -> float:
        read: Tokens = tokens_of(writing.tokenizer, [way(t) for t in texts])
        return read.share(read.in_bytes if is_bytes else read.unknown)

    usual = left(str)
    shares = {words: left(way) for words, way in WAYS.items()}
    best = min(shares, key=lambda words: shares[words])
    if shares[best] > usual / 2:
        return ""
    return (
        f"{best[:1].upper() if best.startswith('take') else best[:1]}{best[1:]}. Then "
        f"{percent(shares[best])} of such tokens remain instead of {percent(usual)} "
        f"({plural(len(texts), 'text')})."
    )
