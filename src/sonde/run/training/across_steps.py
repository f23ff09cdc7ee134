"""Similarity of a site's rows between the steps of a training run.

States keep a sample of rows, mostly for error bars. The sample has the same rows at every step, so
steps can be compared without the models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.chart import Chart, ChartAxis, curves, matrix
from sonde.measure.emergence import EmergenceResult, emergence
from sonde.measure.layer_cka import LayerCKA, LayerCKAResult
from sonde.run.fitting.evidence import sample
from sonde.run.fitting.fitted import Fitted
from sonde.stats import HashSampleState
from sonde.stats.sampled_rows import SampledRows

LEAST_ROWS = 16
MOST_ROWS = 1024
MOST_STEPS = 24
MOST_SITES = 8
FEATURES = 10
"""Principal directions of the last step whose emergence is followed."""
Samples = Mapping[str, Mapping[int, HashSampleState]]


@dataclass(frozen=True)
class SiteAcrossSteps:
    """Comparison of a site's rows between the steps of a training run.

    Parameters
    ----------
    site : str
    steps : tuple of int
        In ascending order.
    similarity : LayerCKAResult
        Debiased CKA of every step to every step.
    emergence : EmergenceResult or None
        When the principal directions of the last step can first be read; None without at least
        two more rows than units.
    """

    site: str
    steps: tuple[int, ...]
    similarity: LayerCKAResult
    emergence: EmergenceResult | None

    @property
    def to_last(self) -> Float[Tensor, "step"]:
        """Similarity of each step to the last one."""
        return torch.as_tensor(self.similarity.value)[:, -1]

    @property
    def errors(self) -> Float[Tensor, "step"]:
        """Standard errors of ``to_last``; NaN if too few rows are known."""
        se = self.similarity.se
        return (
            torch.full_like(self.to_last, torch.nan) if se is None else torch.as_tensor(se)[:, -1]
        )

    @property
    def explained(self) -> Float[Tensor, "step"] | None:
        """Mean fraction of the last step's features that each earlier step explains, in [0, 1]."""
        return None if self.emergence is None else self.emergence.r2.clamp(min=0).mean(1)


def chosen(names: Sequence[str] | Sequence[int], most: int) -> list[int]:
    """Return the indices of at most ``most`` evenly spaced entries, including first and last.

    Examples
    --------
    >>> chosen(range(7), 3), chosen(range(2), 3)
    ([0, 3, 6], [0, 1])
    """
    last = len(names) - 1
    return (
        [*range(last + 1)] if last < most else [round(i * last / (most - 1)) for i in range(most)]
    )


def samples_of(fitted: Fitted) -> dict[str, HashSampleState]:
    """Return the row samples in the states of a step, at no more than 8 evenly spaced sites."""
    sites = [site["text"] for site in fitted.header["sites"]]
    samples = {sites[i]: sample(fitted, sites[i], MOST_ROWS) for i in chosen(sites, MOST_SITES)}
    return {
        site: held.state
        for site, held in samples.items()
        if held is not None and isinstance(held.state, HashSampleState)
    }


def across_steps(samples: Samples) -> list[SiteAcrossSteps]:
    """Compare the rows of each site over the steps.

    Parameters
    ----------
    samples : mapping of str to mapping of int to HashSampleState
        For each site the sample at each step. A site with one step or fewer than 16 rows that all
        steps hold is left out.
    """
    results: list[SiteAcrossSteps] = []
    for site, at in samples.items():
        steps = sorted(at)
        held = tuple(at[step] for step in steps)
        joined = SampledRows.of(held)
        if len(steps) < 2 or len(joined) < LEAST_ROWS:
            continue
        similarity = LayerCKA(MOST_ROWS).result(held)
        rows = dict(zip(steps, joined.rows, strict=True))
        wide = max(x.shape[1] for x in joined.rows)
        emerged = (
            emergence(rows, group=joined.group, k=FEATURES) if len(joined) > wide + 1 else None
        )
        results.append(SiteAcrossSteps(site, tuple(steps), similarity, emerged))
    return results


def charts_across_steps(found: Sequence[SiteAcrossSteps]) -> list[Chart]:
    """Return curves over the steps with a line per site, and a map of steps for each site."""
    if not found:
        return []
    last = found[0].steps[-1]
    rows = [
        {
            "step": step,
            "site": one.site,
            "cka": value,
            "low": value - 2 * se,
            "high": value + 2 * se,
        }
        for one in found
        for step, value, se in zip(
            one.steps, one.to_last.tolist(), one.errors.tolist(), strict=True
        )
    ]
    y = ChartAxis("cka", title="CKA", zero=False)
    title = f"Similarity of each step to step {last:,}"
    charts = [curves(title, rows, "step", y, by="site")]
    lines = [
        {"step": step, "site": one.site, "explained": value}
        for one in found
        if one.explained is not None
        for step, value in zip((*one.steps,), (*one.explained.tolist(), 1.0), strict=True)
    ]
    if lines:
        title = f"Fraction of the features of step {last:,} that the states of each step predict"
        charts.append(curves(title, lines, "step", "explained", by="site"))
    return charts + [_map(one) for one in found if len(one.steps) > 2]


def _map(one: SiteAcrossSteps) -> Chart:
    values = torch.as_tensor(one.similarity.value).tolist()
    rows = [
        {"step": step, "other": other, "cka": value}
        for step, row in zip(one.steps, values, strict=True)
        for other, value in zip(one.steps, row, strict=True)
    ]
    return matrix(f"Similarity of the steps at {one.site}", rows, "other", "step", "cka")
