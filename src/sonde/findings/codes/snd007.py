"""SND007: padding that changes the states of real tokens."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.findings.codes._company import ReadingComparison, amount, level_of, of_answers, where
from sonde.findings.codes._effects import NO_FUNCTION
from sonde.findings.evidence.modules.module_facts import read_modules
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Theme
from sonde.findings.self_check import Deltas, SelfCheck
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, scan_command, sentence

REASONS = ("repeat", "padding", "right", "left")


@final
@dataclass(frozen=True)
class SND007(ReadingComparison):
    """States of texts of different length: each without padding, and padded into one batch.

    Parameters
    ----------
    error : float, default=0.1
        Difference over spread from which on nothing can be trusted.
    """

    error: float = 0.1
    title: ClassVar[str] = "Padding changes real tokens"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("padding",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND042", "SND051", "SND052", "SND053"), levels=SERIOUS, void=NO_FUNCTION),
    )
    why: ClassVar[str] = "The answer to a text depends on the longest text in its batch."
    fix: ClassVar[str] = (
        "Give attention_mask to every layer that mixes positions, and pool over real tokens alone."
    )
    how: ClassVar[str] = (
        "Up to eight texts, all but one cut to half their length, run twice: sorted by length "
        "without padding, and in one batch padded on the side that the processor uses. With "
        "--deep the other side is tried too. An effect on that other side is a note; so is an "
        "effect if all inputs have one length and need no padding. Per site, over real tokens: "
        "rms difference over the rms standard deviation between rows."
    )
    false_positives: ClassVar[str] = (
        "Small effects in 16-bit models are missed rather than reported."
    )
    plant: ClassVar[str] = "A model that ignores its attention mask."
    twin: ClassVar[str] = "The same model with the mask."

    def compare(self, found: SelfCheck, tau: float, evidence: Evidence) -> Check:
        """Compare states with and without padding."""
        both = {"left": found.left, "right": found.right}
        model = evidence.get(read_modules)
        side = "right" if model is None else model.padding_side
        other = "left" if side == "right" else "right"
        used, unused = both[side], both[other] if evidence.deep else None
        if used is not None and used.worst > tau and _of_one_length(evidence):
            return self._unused(
                used, tau, side, "which is not needed as all inputs have one length"
            )
        if used is not None and used.worst > tau:
            return self._harmful(found, used, tau, side)
        if unused is not None and unused.worst > tau:
            return self._unused(unused, tau, other, "which the processor does not use")
        return self._unable(found) if used is None else self.alike(found, used, tau)

    def _harmful(self, found: SelfCheck, deltas: Deltas, tau: float, side: str) -> Check:
        sites = deltas.beyond(tau)
        advice = "Padding on the right changes nothing." if _right_is_fine(found, tau, side) else ""
        text = f"Padding on the {side} changes {_what(sites)}: {amount(deltas, tau)}."
        return self.differing(
            deltas,
            tau,
            sites,
            level=level_of(deltas.worst, tau, self.error),
            sentence=sentence(text, of_answers(deltas, tau, sites), advice),
            next=scan_command(batch_size=1),
            because_of="SND008" if side == "left" and positions_cure(found, tau) else None,
        )

    def _unused(self, deltas: Deltas, tau: float, side: str, why: str) -> Check:
        """Raise a note on harmful padding that this scan does not use; ``why`` is the reason."""
        sites = deltas.beyond(tau)
        text = f"Padding on the {side}, {why}, would change {_what(sites)}: {amount(deltas, tau)}."
        closer = read_command(sites[0].removesuffix(":out")) if sites else None
        return self.differing(
            deltas, tau, sites, level="note", sentence=sentence(text), next=closer
        )

    def _unable(self, found: SelfCheck) -> Check:
        reasons = [found.reasons[name] for name in REASONS if name in found.reasons]
        reason = reasons[0] if reasons else "the model could not be run with padding"
        if reason.startswith("needs"):
            return self.withheld(reason)
        return self.not_applicable(reason)


def _what(sites: list[str]) -> str:
    return f"real tokens at {where(sites)}" if sites else "the answers"


def _of_one_length(evidence: Evidence) -> bool:
    """Return whether all sampled rows have one length, so that no row is padded."""
    length = evidence.columns.get("length")
    return length is not None and len(torch.unique(length.rows)) == 1


def positions_cure(found: SelfCheck, tau: float) -> bool:
    """Return whether left padding harms and positions from the mask remove the harm."""
    if found.left is None or found.left_positions is None:
        return False
    return found.left.worst > tau and found.left_positions.worst <= tau


def _right_is_fine(found: SelfCheck, tau: float, side: str) -> bool:
    return side == "left" and found.right is not None and found.right.worst <= tau
