"""SND026: blocks after which the prediction is worse than before."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.rule import Breaks, Check, Figure, Panel, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import places, read_command, sentence
from sonde.findings.words.text import number, plural


@final
@dataclass(frozen=True)
class SND026(Rule):
    """Loss of the model's own norm and head after a block, minus the loss before the block.

    Parameters
    ----------
    nats, relative : float
        Least rise, in nats and as a share of the loss before.
    z : float, default=5
        Least rise in standard errors over groups.
    half : float, default=0.5
        Depth from which on blocks are judged.
    """

    nats: float = 0.05
    relative: float = 0.03
    z: float = 5.0
    half: float = 0.5
    title: ClassVar[str] = "A block makes the prediction worse"
    theme: ClassVar[Theme] = "depth"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("below probe", "useless block")
    breaks: ClassVar[Breaks] = "some answers"
    panel: ClassVar[Panel] = "update_per_spread"
    why: ClassVar[str] = (
        "Later blocks have to undo the effect, or the final prediction is worse than after an "
        "earlier block."
    )
    fix: ClassVar[str] = (
        "Load this block again from its checkpoint; if the checkpoint has the same weights, "
        "fine-tune the block or take the answer from the block before it."
    )
    how: ClassVar[str] = (
        "Mean next-token loss of the states after every block, through the model's own final "
        "norm and head, on a sample of the data chosen by hash; the rise over a block is paired "
        "by token, with a standard error over groups. Only blocks in the second half count, and "
        "only if the losses before and after the block are below the entropy of the targets' "
        "frequencies: above it, these predictions carry no information."
    )
    false_positives: ClassVar[str] = "Models trained with early exits or other heads inside."
    plant: ClassVar[str] = "The output of one late block times -2."
    twin: ClassVar[str] = "The model at random initialisation."

    def check(self, evidence: Evidence) -> Check:
        """Search for rises of the loss in the second half of the blocks."""
        lens = evidence.get(measure_lens)
        if not isinstance(lens, LensEvidence):
            return self.not_applicable("no model was run")
        if lens.loss is None:
            if lens.too_few:
                return self.withheld(lens.reason)
            return self.not_applicable(lens.reason)
        assert lens.rise is not None
        assert lens.rise_se is not None
        late = [i for i in range(1, len(lens.sites)) if i >= self.half * len(lens.sites)]
        if not late:
            return self.not_applicable("no block is in the second half of the model")
        hits = [i for i in late if self._rises(lens, i)]
        at = max(hits or late, key=lambda i: float(lens.rise[i]))  # type: ignore[index]
        figure = self._figure(lens, at)
        if not hits:
            meaningful = float(lens.loss[late].min()) < lens.unigram
            reason = (
                ""
                if meaningful
                else "the losses after inner blocks are above the entropy of the targets"
            )
            return self.clear(figure, reason)
        worse = self._ends_worse(lens)
        names = [lens.sites[i].removesuffix(":out") for i in hits]
        text = (
            f"The states after {places([lens.sites[at].removesuffix(':out')])} predict the next "
            f"token {number(float(lens.rise[at]))} nats worse than those before it "
            f"({number(float(lens.loss[at - 1]), 3)} to {number(float(lens.loss[at]), 3)}; above "
            f"{number(self.nats)} counts)."
        )
        end = "The final prediction is worse than after an earlier block." if worse else ""
        return self.raised_with(
            level="warning" if worse else "note",
            sentence=sentence(
                text,
                end,
                f"{plural(lens.n_rows, 'token')} of {plural(lens.n_groups, 'group')}.",
            ),
            figure=figure,
            sites=tuple(names),
            effect=min(1.0, float(lens.rise[at])),
            next=read_command(names[0]),
        )

    def _figure(self, lens: LensEvidence, at: int) -> Figure:
        assert lens.rise is not None
        assert lens.rise_se is not None
        rise, se = float(lens.rise[at]), float(lens.rise_se[at])
        return Figure(
            "loss_rise", rise, rise - 1.96 * se, rise + 1.96 * se, unit="nats", null=0.0,
            threshold=self.nats, n_rows=lens.n_rows, n_groups=lens.n_groups,
        )  # fmt: skip

    def _rises(self, lens: LensEvidence, i: int) -> bool:
        assert lens.loss is not None
        assert lens.rise is not None
        assert lens.rise_se is not None
        before, after = float(lens.loss[i - 1]), float(lens.loss[i])
        if max(before, after) >= lens.unigram:
            return False
        return self._large(float(lens.rise[i]), float(lens.rise_se[i]), before)

    def _large(self, rise: float, se: float, before: float) -> bool:
        return rise > self.nats and rise > self.relative * before and rise > self.z * se

    def _ends_worse(self, lens: LensEvidence) -> bool:
        """Return whether the best earlier loss is below the model's own by more than the limits."""
        assert lens.loss is not None
        assert lens.above_final is not None
        assert lens.above_final_se is not None
        best = int(torch.argmin(lens.loss[:-1]))
        gap, se = float(lens.above_final[best]), float(lens.above_final_se[best])
        return self._large(gap, se, float(lens.loss[best]))
