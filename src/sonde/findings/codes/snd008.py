"""SND008: texts padded on the left without positions."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._company import ReadingComparison, amount, figure_of, where
from sonde.findings.codes.snd007 import REASONS, positions_cure
from sonde.findings.evidence.modules.module_facts import read_modules
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Theme
from sonde.findings.self_check import SelfCheck
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import scan_command, sentence


@final
@dataclass(frozen=True)
class SND008(ReadingComparison):
    """Left padding changes the states, and positions derived from the mask remove the change."""

    title: ClassVar[str] = "Left padding without positions"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("padding",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND007",), levels=SERIOUS),)
    why: ClassVar[str] = (
        "With this processor the model counts padded positions; every call that pads without "
        "passing position_ids gets wrong states."
    )
    fix: ClassVar[str] = (
        "Pad on the right (tokenizer.padding_side = 'right'), or give position_ids = "
        "attention_mask.cumsum(-1) - 1."
    )
    how: ClassVar[str] = (
        "Texts padded on the left with and without position_ids = cumsum(mask) - 1, against "
        "texts without padding. Raised if the processor pads on the left and the difference is "
        "above the tolerance without position_ids, but not with them."
    )
    false_positives: ClassVar[str] = "None known; rotary and ALiBi models do not need positions."
    plant: ClassVar[str] = "A model with learned positions and a processor that pads left."
    twin: ClassVar[str] = "A model with rotary positions and the same processor."

    def compare(self, found: SelfCheck, tau: float, evidence: Evidence) -> Check:
        """Compare left padding with and without positions."""
        model = evidence.get(read_modules)
        if model is None or model.padding_side != "left":
            return self.not_applicable("the processor does not pad on the left")
        if found.left is None:
            reasons = [found.reasons[name] for name in REASONS if name in found.reasons]
            return self.not_applicable(
                reasons[0] if reasons else "the model was not run with left padding"
            )
        if found.left.worst <= tau:
            return self.alike(found, found.left, tau)
        if not positions_cure(found, tau):
            figure = figure_of(found.left, tau)
            return self.clear(
                figure, "position_ids from the mask do not remove the difference: see SND007"
            )
        sites = found.left.beyond(tau)
        text = (
            f"With left padding and without position_ids, states at {where(sites)} differ by "
            f"{amount(found.left, tau)}; with position_ids they do not."
        )
        return self.differing(
            found.left,
            tau,
            sites,
            level="error",
            sentence=sentence(text, "This report reads rows at their true positions."),
            next=scan_command(batch_size=1),
        )
