"""SND019: states of a language model that change with later tokens."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._company import ReadingComparison, amount, level_of, where
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Theme
from sonde.findings.self_check import SelfCheck
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, sentence


@final
@dataclass(frozen=True)
class SND019(ReadingComparison):
    """States of the first halves of texts, before and after the second halves are replaced.

    Parameters
    ----------
    error : float, default=0.1
        Difference over spread from which on nothing can be trusted.
    """

    error: float = 0.1
    title: ClassVar[str] = "The future leaks"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("future",)
    breaks: ClassVar[Breaks] = "some answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND007", "SND008", "SND068", "SND070"), levels=SERIOUS),
    )
    why: ClassVar[str] = (
        "A model that sees the tokens it should predict has a low loss but cannot generate "
        "text: its causal mask is missing or misaligned."
    )
    fix: ClassVar[str] = (
        "Mask the future in attention: is_causal=True, or an upper triangle of -inf with "
        "diagonal=1."
    )
    how: ClassVar[str] = (
        "For models that predict next tokens (recognised by their class and configuration): up "
        "to eight texts of one length are run again after the second half of each is replaced "
        "by that of another text. Per site, over tokens of the first half: rms difference over "
        "the rms standard deviation between rows."
    )
    false_positives: ClassVar[str] = (
        "Models that read a prefix in both directions by design; experts with a limited "
        "capacity, for which the tokens of one batch compete."
    )
    plant: ClassVar[str] = "A language model that mixes each token with the mean of its whole text."
    twin: ClassVar[str] = "The same model with the mean of the tokens so far; a GPT-2."

    def compare(self, found: SelfCheck, tau: float, evidence: Evidence) -> Check:
        """Compare the states before different endings of the texts."""
        deltas = found.future
        if deltas is None or not deltas.values:
            return self.not_applicable(
                "the model does not predict a next token, or could run only one text"
            )
        if deltas.worst <= tau:
            return self.alike(found, deltas, tau)
        sites = deltas.beyond(tau)
        text = (
            f"States change with tokens that come later, at {where(sites)}: "
            f"{amount(deltas, tau)}. The model sees the tokens that it is asked to predict."
        )
        repeat = found.repeat is not None and found.repeat.worst > tau
        return self.differing(
            deltas,
            tau,
            sites,
            level=level_of(deltas.worst, tau, self.error),
            sentence=sentence(text),
            next=read_command(sites[0].removesuffix(":out")) if sites else None,
            because_of="SND004" if repeat else None,
        )
