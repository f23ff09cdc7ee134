"""SND025: blocks that hardly change what they receive."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.findings._halves import Z
from sonde.findings._places import places, read_command, rows_of, sentence, too_few
from sonde.findings._text import number, percent, plural
from sonde.findings.evidence import Evidence, SiteEvidence, rows_as_float
from sonde.findings.modules import ModelEvidence
from sonde.findings.rule import Check, Figure, Finding, Rule, Theme
from sonde.stats.halves import half_error, random_halves

GROUPS = 32

Pair = tuple[SiteEvidence, SiteEvidence]


@final
@dataclass(frozen=True)
class SND025(Rule):
    """Change of a block against the spread of what it receives, median over units.

    Parameters
    ----------
    note : float, default=0.05
        Change over spread.
    share : float, default=0.25
        Share of the blocks beyond which it is a warning.
    """

    note: float = 0.05
    share: float = 0.25
    code: ClassVar[str] = "SND025"
    title: ClassVar[str] = "A block that does almost nothing"
    theme: ClassVar[Theme] = "depth"
    why: ClassVar[str] = "It costs time and memory, and what comes next hardly notices it."
    how: ClassVar[str] = (
        "Median over units of rms(out - in) / std(in), for blocks with parameters that work on "
        "what the site before returned. Below 0.05 the input alone explains 99.7 % of the output. "
        "Change over the whole norm is not used: one huge unit makes it small at every later block."
    )
    false_positives: ClassVar[str] = (
        "Similarity is a hint, no proof: a small change can matter. A residual branch that was "
        "just initialised to zero is idle and fine."
    )
    plant: ClassVar[str] = "A block's projections times 0.02; all zero."
    twin: ClassVar[str] = "The same blocks at random initialisation."

    def check(self, evidence: Evidence) -> Check:
        """Compare change and spread at every block."""
        model = evidence.model
        if not isinstance(model, ModelEvidence):
            return self.not_applicable("no model was run: what lies between sites is not known")
        pairs = self._pairs(evidence, model)
        values = {b.name: v for a, b in pairs if (v := change(a, b)) is not None}
        if not values:
            return self.not_applicable("no block keeps its width and follows another site")
        if evidence.n_groups < GROUPS:
            return too_few(self, evidence.n_groups, GROUPS)
        worst = min((p for p in pairs if p[1].name in values), key=lambda p: values[p[1].name])
        value = values[worst[1].name]
        figure = Figure(
            "update_per_spread", value, *_ends(worst, value), unit="ratio", threshold=self.note,
            direction="below", n_rows=worst[1].all.scalars.n, n_groups=evidence.n_groups,
        )  # fmt: skip
        idle = [name for name, v in values.items() if v < self.note]
        if not idle:
            return self.clear(figure, values=values)
        many = len(idle) >= self.share * len(values)
        return self.raised(
            Finding(
                code=self.code,
                level="warning" if many or value == 0 else "note",
                sentence=self._sentence(values, idle, worst[1], figure, evidence),
                figure=figure,
                sites=tuple(idle),
                effect=1.0 - value / self.note,
                next=read_command(worst[1].name),
            ),
            values=values,
        )

    @staticmethod
    def _pairs(evidence: Evidence, model: ModelEvidence) -> list[Pair]:
        found: list[Pair] = []
        for before, site in zip(evidence.sites, evidence.sites[1:], strict=False):
            facts = model.sites.get(site.schema.key)
            if site.all.update is not None and facts and facts.follows and facts.n_parameters:
                found.append((before, site))
        return found

    def _sentence(
        self,
        values: dict[str, float],
        idle: list[str],
        worst: SiteEvidence,
        figure: Figure,
        evidence: Evidence,
    ) -> str:
        others = sorted(v for name, v in values.items() if name not in idle)
        shown = figure.low is not None and figure.high is not None
        ends = (
            f" ({number(100 * max(0.0, figure.low or 0.0))}-{number(100 * (figure.high or 0.0))} %)"
            if shown
            else ""
        )
        one = len(idle) == 1
        text = (
            f"{places(idle)} {'changes what it receives' if one else 'change what they receive'} "
            f"by {'' if one else 'as little as '}{percent(figure.value)}{ends} of its spread; "
            f"below "
            f"{percent(self.note)} counts as almost nothing"
        )
        rest = ""
        if others:
            low, high = number(100 * others[0]), number(100 * others[-1])
            across = f"{low}-{high}" if low != high else low
            rest = f"; {plural(len(others), 'other block')} {across} %"
        return sentence(f"{text}{rest}.", f"{rows_of(worst, evidence)}.")


def change(before: SiteEvidence, site: SiteEvidence) -> float | None:
    """Return the median over units of the change's rms over the spread of what came in."""
    update = site.all.update
    assert update is not None
    return _median(update.mean.square() + update.variance, before.all.moments.variance)


def _median(square: Float[Tensor, "dim"], variance: Float[Tensor, "dim"]) -> float | None:
    alive = variance > 0
    if not bool(alive.any()):
        return None
    return float((square[alive] / variance[alive]).median().sqrt())


def _ends(pair: Pair, value: float) -> tuple[float | None, float | None]:
    """Return a 95 % interval from random halves; None where the rows of the figure are tokens."""
    before, site = pair
    if site.all.key != site.schema.key or not torch.equal(before.sample.draw, site.sample.draw):
        return None, None
    x, y = rows_as_float(before.sample), rows_as_float(site.sample)
    values = []
    for mask in random_halves(site.sample.group):
        found = _median((y - x)[mask].square().mean(0), x[mask].var(0, correction=0))
        if found is not None:
            values.append(found)
    if len(values) < 2:
        return None, None
    se = float(half_error(torch.tensor(values))) * (len(x) / max(site.sample.n, len(x))) ** 0.5
    return value - Z * se, value + Z * se
