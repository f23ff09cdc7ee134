"""SND006: states that depend on the other rows of a batch."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._company import ReadingComparison, amount, level_of, of_answers, where
from sonde.findings.codes._effects import NO_FUNCTION
from sonde.findings.evidence.modules.module_facts import read_modules
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Theme
from sonde.findings.self_check import SelfCheck
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import scan_command, sentence
from sonde.findings.words.text import shortened


@final
@dataclass(frozen=True)
class SND006(ReadingComparison):
    """A row in a batch of equal sizes, compared with the row alone and in another order.

    Parameters
    ----------
    error : float, default=0.1
        Difference over spread from which on nothing can be trusted.
    """

    error: float = 0.1
    title: ClassVar[str] = "The result for a row depends on other rows of the batch"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("batch",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND042", "SND051", "SND052", "SND053"), levels=SERIOUS, void=NO_FUNCTION),
    )
    why: ClassVar[str] = "The model's answer to an input depends on the other inputs in its batch."
    fix: ClassVar[str] = (
        "Call model.eval(); a batch norm without running statistics has to be trained with "
        "track_running_stats=True."
    )
    how: ClassVar[str] = (
        "Up to eight rows, cut to equal length, run in one batch; then one of them runs alone "
        "and the others in another order. Per site: rms difference over the rms standard "
        "deviation between rows."
    )
    false_positives: ClassVar[str] = (
        "Mixtures of experts with a limited capacity do this by design; the finding says "
        "whether the model has a router."
    )
    plant: ClassVar[str] = "Batch norm in training mode or without running statistics."
    twin: ClassVar[str] = "Batch norm with frozen statistics in eval mode."

    def compare(self, found: SelfCheck, tau: float, evidence: Evidence) -> Check:
        """Compare the rows of one batch with the same rows batched in another way."""
        deltas = found.company
        if deltas is None:
            return self.withheld(found.reasons.get("company", "rows could not be run one by one"))
        if deltas.worst <= tau:
            return self.alike(found, deltas, tau)
        sites = deltas.beyond(tau)
        text = (
            f"States of a row change with the other rows of its batch, at {where(sites)}: "
            f"{amount(deltas, tau)}."
        )
        return self.differing(
            deltas,
            tau,
            sites,
            level=level_of(deltas.worst, tau, self.error),
            sentence=sentence(text, _reason(evidence), of_answers(deltas, tau, sites)),
            next=scan_command(batch_size=1),
            because_of=_cause(evidence, found),
        )


def _reason(evidence: Evidence) -> str:
    model = evidence.get(read_modules)
    if model is None:
        return ""
    if model.training:
        return f"{shortened(model.training[0])} is still in training mode."
    if model.batch_norm:
        return f"{shortened(model.batch_norm[0])} has no running statistics."
    return "The model routes tokens to experts." if model.routed else ""


def _cause(evidence: Evidence, found: SelfCheck) -> str | None:
    model = evidence.get(read_modules)
    if model is not None and (model.training or model.batch_norm):
        return "SND005"
    chance = found.repeat is not None and found.repeat.worst > found.tau
    return "SND004" if chance else None
