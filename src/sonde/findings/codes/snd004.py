"""SND004: states that change when the same input is fed again."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._company import ReadingComparison, amount, figure_of, level_of, where
from sonde.findings.codes._effects import NO_FUNCTION
from sonde.findings.evidence.modules.module_facts import in_training_mode
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Theme
from sonde.findings.self_check import SelfCheck
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, sentence
from sonde.findings.words.text import shortened


@final
@dataclass(frozen=True)
class SND004(ReadingComparison):
    """Two runs of the same batch under different random seeds.

    Parameters
    ----------
    error : float, default=0.1
        Difference over spread from which on nothing can be trusted.
    """

    error: float = 0.1
    title: ClassVar[str] = "The same input gives different states"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("random outputs",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND042", "SND051", "SND052", "SND053"), levels=SERIOUS, void=NO_FUNCTION),
    )
    why: ClassVar[str] = "Nothing in this report, and no answer of the model, can be repeated."
    fix: ClassVar[str] = (
        "Call model.eval(), and draw no random numbers in forward; if the model is meant to be "
        "random, pass --stochastic."
    )
    how: ClassVar[str] = (
        "Eight rows chosen by hash run twice with another random seed. Per site: rms difference "
        "over the rms standard deviation between rows."
    )
    false_positives: ClassVar[str] = (
        "Models that draw random numbers by design: declare them with --stochastic."
    )
    plant: ClassVar[str] = "F.dropout(x) without training=, which is on by default."
    twin: ClassVar[str] = "F.dropout(x, training=self.training)."

    def compare(self, found: SelfCheck, tau: float, evidence: Evidence) -> Check:
        """Compare the two runs."""
        if found.repeat is None:
            return self.withheld(found.reasons.get("repeat", "no row could be run twice"))
        worst = found.repeat.worst
        if worst == 0:
            return self.clear(figure_of(found.repeat, tau))
        sites = found.repeat.beyond(min(tau, worst / 2))
        if worst <= tau:
            text = (
                f"Two runs differ by {amount(found.repeat, tau)}; a different order of summation "
                "can explain this."
            )
            level = "note"
        else:
            level = "note" if evidence.stochastic else level_of(worst, tau, self.error)
            text = (
                f"Two runs of the same rows differ at {where(sites)}: {amount(found.repeat, tau)}."
            )
        return self.differing(
            found.repeat,
            tau,
            sites,
            level=level,
            sentence=sentence(text, _reason(evidence)),
            next=read_command(sites[0].removesuffix(":out")) if sites else None,
            because_of="SND005" if in_training_mode(evidence) else None,
            trial=None if in_training_mode(evidence) else found.undone,
        )


def _reason(evidence: Evidence) -> str:
    if evidence.stochastic:
        return "The model was declared random (--stochastic)."
    training = in_training_mode(evidence)
    return f"{shortened(training[0])} is still in training mode." if training else ""
