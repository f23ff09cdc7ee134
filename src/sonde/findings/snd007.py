"""SND007: padding that changes the states of real tokens."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings._company import Comparison, amount, level_of, where
from sonde.findings._places import scan_command, sentence
from sonde.findings.evidence import Evidence
from sonde.findings.rule import Check, Theme
from sonde.findings.self_check import Deltas, SelfCheck

REASONS = ("repeat", "padding", "right", "left")


@final
@dataclass(frozen=True)
class SND007(Comparison):
    """Texts of different length without padding against padded on the processor's side.

    Parameters
    ----------
    error : float, default=0.1
        Difference over spread from which on nothing can be trusted.
    """

    error: float = 0.1
    code: ClassVar[str] = "SND007"
    title: ClassVar[str] = "Padding changes real tokens"
    theme: ClassVar[Theme] = "run"
    why: ClassVar[str] = "The answer to a text depends on the longest text beside it."
    how: ClassVar[str] = (
        "Up to eight texts, all but one cut to half, run by length without padding and together "
        "with it, on the side that the processor uses (both with --deep). Per site, over real "
        "tokens: rms difference over the rms spread between rows."
    )
    false_positives: ClassVar[str] = "Small leaks in 16 bit are missed rather than reported."
    plant: ClassVar[str] = "A model that ignores its attention mask."
    twin: ClassVar[str] = "The same model with the mask."

    def compare(self, found: SelfCheck, tau: float, evidence: Evidence) -> Check:
        """Compare without padding with padded."""
        known = self._sides(found, evidence)
        if not known:
            return self._unable(found)
        side = max(known, key=lambda s: known[s].worst)
        deltas = known[side]
        if deltas.worst <= tau:
            return self.alike(found, deltas, tau)
        sites = deltas.beyond(tau)
        advice = "Padded on the right it is stable." if _right_is_fine(found, tau, side) else ""
        text = (
            f"Padding on the {side} changes real tokens at {where(sites)}: {amount(deltas, tau)}."
        )
        return self.differing(
            deltas,
            tau,
            sites,
            level=level_of(deltas.worst, tau, self.error),
            sentence=sentence(text, advice),
            next=scan_command(batch_size=1),
            because_of="SND008" if side == "left" and positions_cure(found, tau) else None,
        )

    @staticmethod
    def _sides(found: SelfCheck, evidence: Evidence) -> dict[str, Deltas]:
        deep = bool(evidence.options.get("deep"))
        sides = ["left", "right"] if deep else [evidence.model.padding_side]
        both = {"left": found.left, "right": found.right}
        return {s: d for s in sides if (d := both[s]) is not None}

    def _unable(self, found: SelfCheck) -> Check:
        known = [found.reasons[name] for name in REASONS if name in found.reasons]
        reason = known[0] if known else "could not be run padded"
        if reason.startswith("needs"):
            return self.withheld(reason)
        return self.not_applicable(reason)


def positions_cure(found: SelfCheck, tau: float) -> bool:
    """Return whether left padding harms and positions from the mask take the harm away."""
    if found.left is None or found.left_positions is None:
        return False
    return found.left.worst > tau and found.left_positions.worst <= tau


def _right_is_fine(found: SelfCheck, tau: float, side: str) -> bool:
    return side == "left" and found.right is not None and found.right.worst <= tau
