"""Wrong labels: how many there are, with an interval, and which ones, from class probabilities."""

from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from scipy.stats import chi2
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.tensors import as_tensor
from sonde.metrics.intervals import members

RATES: Final = torch.cat([torch.zeros(1), torch.logspace(-4.3, -0.2, 100)]).double()
"""Fractions of wrong labels whose likelihood is computed."""
SHARPNESS: Final = torch.logspace(-1.4, 0.7, 30).double()
"""Powers of the probabilities; above 1 they are too cautious, below 1 too sure."""
INTERVAL: Final = float(chi2.ppf(0.95, 1)) / 2
NO_SIGN: Final = 0.05
"""Level above which the number of wrong labels is 0."""
TINY: Final = 1e-12


@dataclass(frozen=True, eq=False)
class WrongLabels:
    """Number of wrong labels with a 95 % interval, and the probability that each label is wrong.

    Parameters
    ----------
    number, low, high : float
        Estimated number of wrong labels, and its interval. 0 if ``p`` is at least 0.05.
    p : float
        Probability of as good a fit if no label is wrong.
    support : Float[Tensor, "row"]
        Probability of the label among the classes, if it is right.
    probability : Float[Tensor, "row"]
        Probability that the label is wrong, in [0, 1].
    named : Int[Tensor, "row"]
        The class with the largest probability apart from the label.
    sharpness : float
        Power of the given probabilities that fits the labels best: 1 = calibrated.
    """

    number: float
    low: float
    high: float
    p: float
    support: Float[Tensor, "row"]
    probability: Float[Tensor, "row"]
    named: Int[Tensor, "row"]
    sharpness: float

    @property
    def order(self) -> Int[Tensor, "row"]:
        """Rows in the order in which to check their labels, the most doubtful first."""
        return torch.argsort(self.support, stable=True)

    def expected(self, k: int) -> float:
        """Return the expected number of wrong labels among the first ``k`` rows of the order."""
        return float(self.probability[self.order[:k]].sum())

    @property
    def precision(self) -> float:
        """Expected fraction of wrong labels among as many first rows as labels are wrong."""
        k = max(1, round(self.number))
        return self.expected(k) / k


def wrong_labels(probabilities: Any, label: Any, group: Any = None) -> WrongLabels:
    """Estimate how many labels are wrong, from class probabilities that did not learn the labels.

    A label is right with probability ``1 - e``, and then the classes have the given probabilities
    to some power; otherwise the label is another class than the true one, each with the same
    probability. The fraction ``e`` and the power are those of the largest likelihood, so an
    overconfident model is no reason to call labels wrong: what counts are labels that contradict
    predictions more often than predictions of this confidence err. The interval is that of the
    profile likelihood.

    Range        number in [0, rows]; 0 = no sign of wrong labels. Order: higher = more doubtful.
    Cost         O(rows classes) for each of 30 powers, O(rows) for each of 101 fractions and power.
    Assumes      probabilities of rows that the model did not learn from; wrong labels that do not
                 depend on the input. Labels that are wrong by a rule (all night images) count less.

    Parameters
    ----------
    probabilities : array (row, class)
        Probabilities of the classes, each row of sum 1.
    label : array (row,)
        Class of each row, from 0 on.
    group : array (row,), optional
        Document, person or other group of each row: rows of a group count as one in the interval.

    Examples
    --------
    >>> x = 4 * torch.linspace(-4, 4, 400)
    >>> p, y = torch.stack([-x, x], 1).sigmoid(), (x > 0).long()
    >>> y[::20] = 1 - y[::20]
    >>> found = wrong_labels(p, y)
    >>> round(found.number), sorted(found.order[:20].tolist()) == list(range(0, 400, 20))
    (19, True)
    """
    p, y = _checked(probabilities, label)
    n, n_classes = p.shape
    weight = _weights(group, n)
    logs = p.clamp(min=TINY).log()
    best = torch.full((len(RATES),), torch.inf, dtype=torch.float64)
    powers = torch.zeros_like(best)
    for power in SHARPNESS:
        own = (logs * power).log_softmax(1).gather(1, y[:, None])[:, 0].exp()
        loss = _losses(own, RATES, n_classes, weight)
        powers = torch.where(loss < best, power, powers)
        best = torch.minimum(loss, best)
    at = int(best.argmin())
    inside = RATES[best <= best[at] + INTERVAL]
    rate, power = float(RATES[at]), float(powers[at])
    if rate > 0:  # between its neighbours on the grid
        own = (logs * power).log_softmax(1).gather(1, y[:, None])[:, 0].exp()
        near = torch.linspace(float(RATES[at - 1]), float(RATES[min(at + 1, len(RATES) - 1)]), 41)
        rate = float(near[int(_losses(own, near.double(), n_classes, weight).argmin())])
    gain = 2 * float(best[0] - best[at])
    p_value = float(chi2.sf(gain, 1)) / 2 if gain > 0 else 1.0
    if p_value >= NO_SIGN:  # a flat likelihood has its maximum anywhere
        rate, power = 0.0, float(powers[0])
    q = (logs * power).softmax(1)
    own = q.gather(1, y[:, None])[:, 0]
    wrong = rate * (1 - own) / (n_classes - 1)
    named = q.scatter(1, y[:, None], -1.0).argmax(1)
    return WrongLabels(
        rate * n,
        float(inside.min()) * n,
        float(inside.max()) * n,
        p_value,
        own,
        wrong / (wrong + (1 - rate) * own).clamp(min=1e-300),
        named,
        power,
    )


def _losses(
    own: Float[Tensor, "row"],
    rates: Float[Tensor, "rate"],
    n_classes: int,
    weight: Float[Tensor, "row"],
) -> Float[Tensor, "rate"]:
    """Return the negative log-likelihood of the labels for each fraction of wrong ones."""
    rates = rates[:, None]
    seen = (1 - rates) * own + rates * (1 - own) / (n_classes - 1)
    return -(seen.clamp(min=1e-300).log() * weight).sum(1)


def _checked(
    probabilities: Any, label: Any
) -> tuple[Float[Tensor, "row class"], Int[Tensor, "row"]]:
    """Return probabilities and labels; raise if they do not fit each other."""
    p = as_tensor("wrong_labels", probabilities, "probabilities").detach().cpu().double()
    y = as_tensor("wrong_labels", label, "labels").detach().cpu()
    if p.ndim != 2 or y.shape != p.shape[:1] or not len(p) or p.shape[1] < 2:
        raise InputError(
            "wrong_labels: expected rows of probabilities of at least two classes and a label "
            f"for each row, got shapes {tuple(p.shape)} and {tuple(y.shape)}."
        )
    total = p.sum(1)
    is_finite = bool(torch.isfinite(p).all())
    if not is_finite or bool((p < 0).any()) or float((total - 1).abs().max()) > 0.01:
        raise InputError(
            "wrong_labels: expected finite probabilities of sum 1 in each row, got sums from "
            f"{float(total.min()):.4g} to {float(total.max()):.4g} and a minimum of "
            f"{float(p.min()):.4g}. Apply softmax to logits first."
        )
    if y.dtype.is_floating_point or bool(((y < 0) | (y >= p.shape[1])).any()):
        raise InputError(
            f"wrong_labels: expected integer labels from 0 to {p.shape[1] - 1}, got {y.dtype} from "
            f"{y.min().item()} to {y.max().item()}."
        )
    return p, y.long()


def _weights(group: Any, n: int) -> Float[Tensor, "row"]:
    """Return the weight of each row: one over the number of rows of its group."""
    index = members(group, n)
    return 1 / torch.bincount(index)[index].double()
