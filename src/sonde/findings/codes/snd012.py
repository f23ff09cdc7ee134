"""SND012: batch norms whose running statistics do not match their inputs."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.batch_norm_fits import NormFit
from sonde.findings.evidence.trials.input_trials import VariantEvidence, variant_evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Level, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.trial import Trial, gained
from sonde.findings.words.places import places, read_command, sentence
from sonde.findings.words.text import number, plural


@final
@dataclass(frozen=True)
class SND012(Rule):
    """Running mean and variance of each batch norm, compared with those of its inputs."""

    note: float = 0.125
    warning: float = 0.5

    title: ClassVar[str] = "Batch-norm statistics that do not fit these rows"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("worse in production", "batch")
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains(("SND037", "SND039", "SND046", "SND069"), levels=SERIOUS),
        Explains(("SND061", "SND062", "SND063", "SND064")),
    )
    why: ClassVar[str] = (
        "In eval mode a batch norm subtracts a stored mean and divides by a stored standard "
        "deviation. If these do not match the inputs, all later layers receive numbers on the "
        "wrong scale."
    )
    fix: ClassVar[str] = (
        "Compare the scale of the inputs with that in training. To try the statistics of these "
        "rows on rows with labels: model.train() over them once under torch.no_grad(), then "
        "model.eval()."
    )
    how: ClassVar[str] = (
        "Up to 128 rows are run, and the mean and variance of each channel before each batch "
        "norm are compared with its buffers: the relative entropy of two Gaussians, in nats, "
        "median over channels. A mean that is off by half a standard deviation gives 0.125 "
        "nats, a mean off by one standard deviation 0.5 nats. Buffers still at mean 0 and "
        "variance 1 are reported as never updated; that is a note if no weight or bias of any "
        "batch norm was trained either. If the answers can be judged, the norms that do not fit "
        "are given the mean and variance of half of the rows: all of these norms, the first "
        "alone, the first above 0.5 nats alone, and the worst alone. The other half of the rows "
        "tests the best of these choices; the finding is a note if it does not help."
    )
    false_positives: ClassVar[str] = (
        "Data that differ from the training data: SND051 then reports them too. Very small "
        "batches in training leave noisy statistics."
    )
    plant: ClassVar[str] = "A trained net with the buffers of new batch norms."
    twin: ClassVar[str] = "The trained net."

    def check(self, evidence: Evidence) -> Check:
        """Find the first batch norm whose statistics do not fit its inputs."""
        variants = evidence.get(variant_evidence)
        if not isinstance(variants, VariantEvidence) or not variants.norms:
            return self.not_applicable("no batch norm with running statistics ran on enough rows")
        worst = max(variants.norms, key=lambda n: n.misfit)
        bad = [n for n in variants.norms if n.misfit >= self.note]
        if not bad:
            return self.clear(self._figure(worst, variants, self.note))
        moved = [n for n in bad if not n.unmoved]
        first = (moved or bad)[0]
        severe = worst.misfit >= self.warning and not all(n.untrained for n in variants.norms)
        severe = severe and (variants.refitted is None or variants.refitted.holds)
        level: Level = "warning" if severe else "note"
        limit = self.warning if severe else self.note
        return self._raised(variants, bad, first, worst, level, limit)

    def _figure(self, worst: NormFit, found: VariantEvidence, limit: float) -> Figure:
        return Figure(
            "misfit", worst.misfit, unit="nats", null=0.0, threshold=limit, n_rows=found.n_rows
        )

    def _raised(
        self,
        found: VariantEvidence,
        bad: list[NormFit],
        first: NormFit,
        worst: NormFit,
        level: Level,
        limit: float,
    ) -> Check:
        alone = _alone(found)
        shown = alone or (worst if first.unmoved else first)
        off = (
            f"The inputs of {shown.path} lie {number(shown.shift)} standard deviations from its "
            f"running mean and have {number(shown.ratio)} times its running variance (median "
            f"channel, {plural(found.n_rows, 'row')})."
        )
        more = f"{len(bad)} of {len(found.norms)} batch norms do not fit these rows."
        if alone is not None and alone is not found.norms[0]:
            more = f"{more[:-1]}; replacing the statistics of this norm restores the answers."
        elif first.unmoved:
            names = places([n.path for n in bad], 1)
            more = f"The buffers of {names} were never updated: mean 0 and variance 1."
        elif first is found.norms[0]:
            more += " It is the first norm, so the inputs are scaled differently than in training."
        else:
            more += f" The first norm, {found.norms[0].path}, fits."
        gain, fix = _of_trial(found.refitted, alone)
        return self.raised_with(
            level,
            sentence(off, gain or more, more if gain else ""),
            self._figure(worst, found, limit),
            sites=tuple(n.path for n in bad) if alone is None else (alone.path,),
            effect=min(1.0, worst.misfit / (1 + worst.misfit)),
            next=read_command(shown.path if alone else first.path),
            fix=fix,
            trial=found.refitted,
        )


ALL = "its batch norms"


def _alone(found: VariantEvidence) -> NormFit | None:
    """Return the batch norm that restores the answers by itself, or None."""
    tried = found.refitted
    if tried is None or not tried.holds or tried.change.endswith(ALL):
        return None
    return next((n for n in found.norms if tried.change.endswith(f" in {n.path}")), None)


def _of_trial(tried: Trial | None, alone: NormFit | None) -> tuple[str, str]:
    """Describe the answers with batch-norm statistics of these rows, and the next step."""
    if tried is None:
        return "", ""
    if alone is not None:
        return "", (
            "Scale the inputs as in training; if they are, load running_mean and running_var of "
            f"{alone.path} again from the checkpoint of the training run; with the mean and "
            f"variance of these rows: {gained(tried)}."
        )
    if tried.holds:
        return "", (
            "Run model.train() over the rows once under torch.no_grad(), then model.eval(): "
            f"{gained(tried)}."
        )
    return (
        f"With batch-norm statistics of these rows the model is no better: {gained(tried)}.",
        "Keep the stored statistics: these inputs differ in kind from those that the norms were "
        "trained on, and the layers after the norms rely on the stored statistics.",
    )
