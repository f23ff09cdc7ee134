"""SND005: parts of an evaluated model that still behave as in training."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._company import checked
from sonde.findings.codes._effects import NO_FUNCTION
from sonde.findings.evidence.modules.module_facts import ModelEvidence, read_modules
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import scan_command, sentence
from sonde.findings.words.text import listed, plural, shortened


@final
@dataclass(frozen=True)
class SND005(Rule):
    """Dropout, batch norm and other mode-dependent modules in training mode inside an eval model.

    Parameters
    ----------
    warning : int, default=1
        Least number of such modules for a warning.
    """

    warning: int = 1
    title: ClassVar[str] = "Part of the model is still training"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("random outputs",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND004", "SND006"), levels=SERIOUS),
        Explains(("SND042", "SND051", "SND052", "SND053"), levels=SERIOUS, void=NO_FUNCTION),
    )
    why: ClassVar[str] = (
        "The model's answers depend on chance or on the other rows of a batch, and running "
        "statistics drift with every call."
    )
    fix: ClassVar[str] = "Call model.eval() after the weights are loaded."
    how: ClassVar[str] = (
        "Counted are modules that are in training mode while the model is in eval mode, if "
        "their behaviour depends on the mode (dropout above 0, batch norm, recurrent dropout, "
        "modules whose forward reads self.training), and batch norms without running "
        "statistics. An error if two runs differ, or if the result for a row depends on its "
        "batch. The scan itself runs the model in eval mode."
    )
    false_positives: ClassVar[str] = "Dropout kept on for sampling by design (--stochastic)."
    plant: ClassVar[str] = "model.eval(); model.block.bn.train()."
    twin: ClassVar[str] = "Batch norm with frozen statistics in eval mode."

    def check(self, evidence: Evidence) -> Check:
        """Read the training flags; the self-check shows whether training mode does harm."""
        model = evidence.get(read_modules)
        if not isinstance(model, ModelEvidence):
            return self.not_applicable("no model was run")
        wrong = [*model.training, *model.batch_norm]
        figure = Figure(
            "modules_in_training", float(len(wrong)), unit="modules", threshold=0.0,
            n_rows=model.self_check.n_rows,
        )  # fmt: skip
        if len(wrong) < self.warning:
            mode = (
                "the whole model is in training mode; the scan read it in eval mode"
                if model.was_training
                else ""
            )
            return self.clear(figure, mode)
        harm = self._harm(evidence)
        return self.raised_with(
            level="error" if harm else "warning",
            sentence=sentence(self._text(model), harm, self._reading(model)),
            figure=figure,
            sites=tuple(wrong),
            effect=1.0 if harm else 0.5,
            next=scan_command(deep=True),
            trial=model.self_check.undone if model.training else None,
        )

    @staticmethod
    def _text(model: ModelEvidence) -> str:
        parts = []
        if model.training:
            names = listed([shortened(n or "the model itself") for n in model.training], 2)
            verb = "behaves" if len(model.training) == 1 else "behave"
            parts.append(f"{names} still {verb} as in training")
        if model.batch_norm:
            n = plural(len(model.batch_norm), "batch norm")
            verb = "has" if len(model.batch_norm) == 1 else "have"
            names = listed([shortened(b) for b in model.batch_norm], 2)
            parts.append(f"{n} ({names}) {verb} no running statistics")
        return f"{'; '.join(parts)}."

    @staticmethod
    def _harm(evidence: Evidence) -> str:
        self_check = checked(evidence)
        if self_check is None:
            return ""
        reasons = []
        if self_check.repeat is not None and self_check.repeat.worst > self_check.tau:
            reasons.append("two runs differ")
        if self_check.company is not None and self_check.company.worst > self_check.tau:
            reasons.append("the result for a row depends on other rows of the batch")
        text = " and ".join(reasons)
        return f"{text[:1].upper()}{text[1:]}." if reasons else ""

    @staticmethod
    def _reading(model: ModelEvidence) -> str:
        return "The scan read them in eval mode." if model.training else ""
