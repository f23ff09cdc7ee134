"""How far off the numbers of a regression model are, beside a linear probe and the mean alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.engine.errorbars import group_error
from sonde.findings._held_out import FOLDS
from sonde.findings._linear import metric_times
from sonde.findings._once import once
from sonde.findings._shared import shared_rows
from sonde.findings.evidence import Evidence


@dataclass(frozen=True, eq=False)
class NumberAnswers:
    """A regression model's squared errors on the sampled rows that have a target.

    Parameters
    ----------
    own : Float[Tensor, "row"]
        Of the model.
    mean : Float[Tensor, "row"]
        Of always saying the mean.
    probes : tuple of (str, Float[Tensor, "row"])
        Of a held-out linear regression at each site.
    group : Int[Tensor, "row"]
    correlation : float
        Of the model's numbers with the targets, over these rows.
    """

    own: Float[Tensor, "row"]
    mean: Float[Tensor, "row"]
    probes: tuple[tuple[str, Float[Tensor, "row"]], ...]
    group: Int[Tensor, "row"]
    correlation: float

    @property
    def best(self) -> int:
        """Index of the site whose probe errs least; the last of equal ones."""
        errors = [float(e.mean()) for _, e in self.probes]
        return min(range(len(errors)), key=lambda i: (errors[i], -i))


@once
def number_rows(evidence: Evidence) -> tuple[Tensor, Tensor, Tensor] | str:
    """Return the shared rows with a target, the answers, and the targets, or why there are none."""
    target = evidence.data.target
    if target is None or not evidence.sites:
        return "the data have no labels"
    shared = shared_rows(evidence)
    logits, order = shared.column("logits"), shared.order
    if logits is None or order is None or logits.shape[1] != 1:
        return "the labels are numbers that are not whole, and the model gives no single number"
    said, truth = logits[:, 0].double(), target[order].double()
    where = torch.nonzero(torch.isfinite(said) & torch.isfinite(truth)).flatten()
    said, truth = said[where], truth[where]
    if len(torch.unique(shared.group[where])) < 2 or not bool(truth.std() > 0):
        return "the targets are all equal, or of one group"
    return where, said, truth


@once
def number_answers(evidence: Evidence) -> NumberAnswers | str:
    """Return a regression model's errors, or the reason why there are none."""
    numbers = number_rows(evidence)
    if isinstance(numbers, str):
        return numbers
    where, said, truth = numbers
    shared = shared_rows(evidence)
    group = shared.group[where]
    probes = tuple(
        (site.schema.key, (_held_out(shared.x(i)[where], truth, group) - truth).square())
        for i, site in enumerate(evidence.sites)
    )
    return NumberAnswers(
        own=(said - truth).square(),
        mean=(truth - truth.mean()).square(),
        probes=probes,
        group=group,
        correlation=float(torch.corrcoef(torch.stack([said, truth]))[0, 1].nan_to_num()),
    )


def root_mean(squares: Float[Tensor, "row"], group: Int[Tensor, "row"]) -> tuple[float, float]:
    """Return the root of the mean and its standard error over groups."""
    root = float(squares.mean()) ** 0.5
    se = group_error(squares / len(squares), group, len(torch.unique(group)))
    return root, se / (2 * root) if root > 0 else 0.0


def _held_out(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row"], group: Int[Tensor, "row"]
) -> Float[Tensor, "row"]:
    """Return the prediction for each row by a linear regression fitted without the row's fold."""
    found, fold = torch.full_like(y, float(y.mean())), torch.remainder(group, FOLDS)
    for f in range(FOLDS):
        held = fold == f
        if bool(held.all()) or not bool(held.any()):
            continue
        rows, mean, level = x[~held], x[~held].mean(0), y[~held].mean()
        centred, n = rows - mean, len(rows)
        shared = centred.T @ (y[~held] - level)[:, None] / n
        found[held] = (
            level + ((x[held] - mean) @ metric_times(centred.T @ centred, n, shared))[:, 0]
        )
    return found
