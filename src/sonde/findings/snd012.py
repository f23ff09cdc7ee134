"""SND012: batch norms whose running statistics are not those of what reaches them."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings._places import places, read_command, sentence
from sonde.findings._text import number, plural
from sonde.findings.evidence import Evidence
from sonde.findings.rule import Check, Figure, Level, Rule, Theme
from sonde.findings.variants import NormFit, VariantEvidence


@final
@dataclass(frozen=True)
class SND012(Rule):
    """Running mean and variance of each batch norm beside those of the rows that reach it."""

    note: float = 0.125
    warning: float = 0.5

    title: ClassVar[str] = "Batch norms that do not know these rows"
    theme: ClassVar[Theme] = "run"
    why: ClassVar[str] = (
        "In eval mode a batch norm subtracts a mean and divides by a spread that it remembers; "
        "where these are not those of its rows, everything after it works on the wrong scale."
    )
    fix: ClassVar[str] = (
        "Scale the inputs as in training. If the inputs are right, run model.train() over them "
        "once under torch.no_grad(), then model.eval()."
    )
    how: ClassVar[str] = (
        "Up to 128 rows are run and the mean and variance of each channel before each batch norm "
        "compared with its buffers: the relative entropy of two Gaussians, in nats, median over "
        "channels. 0.125 is a mean that is off by half a standard deviation, 0.5 by a whole one. "
        "Buffers still at mean 0 and variance 1 are said to have never moved; that is a note "
        "where no weight or bias of any batch norm was trained either."
    )
    false_positives: ClassVar[str] = (
        "Data of another kind than the training data: then SND051 shows it too. Very small "
        "batches in training leave noisy statistics."
    )
    plant: ClassVar[str] = "A trained net with the buffers of new batch norms."
    twin: ClassVar[str] = "The trained net."

    def check(self, evidence: Evidence) -> Check:
        """Find the first norm whose statistics do not fit."""
        found = evidence.variants
        if not isinstance(found, VariantEvidence) or not found.norms:
            return self.not_applicable("no batch norm with running statistics ran on enough rows")
        worst = max(found.norms, key=lambda n: n.misfit)
        bad = [n for n in found.norms if n.misfit >= self.note]
        if not bad:
            return self.clear(self._figure(worst, found, self.note))
        moved = [n for n in bad if not n.unmoved]
        first = (moved or bad)[0]
        severe = worst.misfit >= self.warning and not all(n.untrained for n in found.norms)
        level: Level = "warning" if severe else "note"
        limit = self.warning if severe else self.note
        return self._raised(found, bad, first, worst, level, limit)

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
        shown = worst if first.unmoved else first
        off = (
            f"What reaches {shown.path} lies {number(shown.shift)} standard deviations from its "
            f"running mean, with {number(shown.ratio)} times its running variance (median channel, "
            f"{plural(found.n_rows, 'row')})."
        )
        more = f"{len(bad)} of {len(found.norms)} batch norms do not fit."
        if first.unmoved:
            names = places([n.path for n in bad], 1)
            more = f"The buffers of {names} have never moved from mean 0 and variance 1."
        elif first is found.norms[0]:
            more += " It is the first: inputs have another scale than in training."
        else:
            more += f" {found.norms[0].path}, the first, fits."
        return self.raised_with(
            level,
            sentence(off, more),
            self._figure(worst, found, limit),
            sites=tuple(n.path for n in bad),
            effect=min(1.0, worst.misfit / (1 + worst.misfit)),
            next=read_command(first.path),
        )
