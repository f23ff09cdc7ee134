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
SHARPNESS: Final = torch.logspace(-1.4, 0.7, 22).double()
"""Median powers of the probabilities; above 1 they are too cautious, below 1 too sure."""
SPREADS: Final = (0.0, 0.25, 0.5)
"""Standard deviations, over the rows, of the logarithm of the power."""
POWERS: Final = torch.logspace(-2.1, 1.4, 36).double()
"""Powers at which the likelihood of each row is computed. That of a median and a spread is the
mean over these powers, weighted by the log-normal distribution of the two."""
INTERVAL: Final = float(chi2.ppf(0.95, 1)) / 2
NO_SIGN: Final = 0.05
"""Level above which the number of wrong labels is 0."""
BLOCKS: Final = (10, 20)
"""Numbers of blocks of neighbouring rows whose errors are compared."""
NEAR: Final = 7.0
"""Difference in log-likelihood, in nats, beyond which a fraction has no part in an average."""
CHUNK: Final = 8192
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
        Probability that the label is wrong, in [0, 1]: the mean over all fractions and powers that
        fit, weighted by their likelihood.
    named : Int[Tensor, "row"]
        The class with the largest probability apart from the label.
    sharpness : float
        Median power of the given probabilities that fits the labels best: 1 = calibrated.
    dispersion : float
        Variance of the errors in blocks of neighbouring rows, relative to independent errors; at
        least 1. It divides the log-likelihood: above 1 the interval is wider, and ``probability``
        is averaged over more; ``number`` and ``p`` stay.
    """

    number: float
    low: float
    high: float
    p: float
    support: Float[Tensor, "row"]
    probability: Float[Tensor, "row"]
    named: Int[Tensor, "row"]
    sharpness: float
    dispersion: float

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
    probability. The power differs from row to row (log-normal), so a model may be overconfident,
    and on some rows more than on others: what counts are labels that contradict predictions more
    often than predictions of this confidence err. The fraction ``e``, the median of the powers and
    their spread are those of the largest likelihood. The interval is that of the profile
    likelihood, widened if errors crowd in neighbouring rows, as they do if the model was fitted on
    unshuffled folds.

    Range        number in [0, rows]; 0 = no sign of wrong labels. Order: higher = more doubtful.
    Cost         O(rows classes) for each of 36 powers, O(rows) for each of 101 fractions and 66
                 distributions of powers.
    Assumes      probabilities of rows that the model did not learn from, in the order in which the
                 rows were collected; wrong labels that do not depend on the input. Labels that are
                 wrong by a rule (all night images) count less. A model that is confident in wrong
                 answers, against which its confidence gives no warning, looks like wrong labels.

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
    index = members(group, n)
    weight = 1 / torch.bincount(index)[index].double()
    loss = torch.zeros(len(RATES), len(SHARPNESS) * len(SPREADS), dtype=torch.float64)
    for rows in torch.arange(n).split(CHUNK):
        loss += _losses(_supports(p[rows], y[rows]), n_classes, weight[rows])
    best, form = loss.min(1)
    at = int(best.argmin())
    rate, own = float(RATES[at]), _support(p, y, int(form[at]))
    if rate > 0:  # between its neighbours on the grid
        near = torch.linspace(float(RATES[at - 1]), float(RATES[min(at + 1, len(RATES) - 1)]), 41)
        rate = float(near[int(_losses(own[:, None], n_classes, weight, near.double()).argmin())])
    expected = (1 - rate) * _support(p, p.argmax(1), int(form[at]))
    spread = _dispersion((p.argmax(1) == y).double() - expected, index, weight)
    inside = RATES[best <= best[at] + INTERVAL * spread]
    gain = 2 * float(best[0] - best[at])
    p_value = float(chi2.sf(gain, 1)) / 2 if gain > 0 else 1.0
    is_sign = p_value < NO_SIGN  # else the likelihood is flat, with its maximum anywhere
    chosen = int(form[at]) if is_sign else int(form[0])
    wrong = torch.zeros(n, dtype=torch.float64)
    if is_sign:
        wrong = torch.cat([_probability(_supports(p[rows], y[rows]), n_classes, loss / spread)
                           for rows in torch.arange(n).split(CHUNK)])  # fmt: skip
    return WrongLabels(
        rate * n if is_sign else 0.0,
        float(inside.min()) * n,
        float(inside.max()) * n,
        p_value,
        _support(p, y, chosen),
        wrong,
        p.scatter(1, y[:, None], -1.0).argmax(1),
        float(SHARPNESS[chosen % len(SHARPNESS)]),
        spread,
    )


def _mixtures() -> Float[Tensor, "power form"]:
    """Return the weights of the powers in each distribution, spread by spread."""
    off = POWERS.log()[:, None] - SHARPNESS.log()
    scale = torch.tensor([max(spread, 0.05) for spread in SPREADS]).double()  # of one or two powers
    weights = (-((off[:, None] / scale[:, None]) ** 2) / 2).flatten(1)
    return weights.softmax(0)


def _supports(
    p: Float[Tensor, "row class"], label: Int[Tensor, "row"]
) -> Float[Tensor, "row form"]:
    """Return the probability of each row's label under each distribution of powers."""
    return _by_powers(p, label, POWERS) @ _mixtures()


def _support(
    p: Float[Tensor, "row class"], label: Int[Tensor, "row"], form: int
) -> Float[Tensor, "row"]:
    """Return the probability of each row's label under one distribution of powers."""
    weights = _mixtures()[:, form]
    kept = weights > 1e-9
    chunks = torch.arange(len(p)).split(CHUNK)
    return torch.cat([_by_powers(p[r], label[r], POWERS[kept]) @ weights[kept] for r in chunks])


def _by_powers(
    p: Float[Tensor, "row class"], label: Int[Tensor, "row"], powers: Float[Tensor, "power"]
) -> Float[Tensor, "row power"]:
    logs = p.clamp(min=TINY).log()
    own = [(logs * power).log_softmax(1).gather(1, label[:, None]) for power in powers]
    return torch.cat(own, 1).exp().clamp(min=1e-300)


def _losses(
    own: Float[Tensor, "row form"],
    n_classes: int,
    weight: Float[Tensor, "row"],
    rates: Float[Tensor, "rate"] = RATES,
) -> Float[Tensor, "rate form"]:
    """Return the negative log-likelihood of the labels for each fraction of wrong ones."""
    other = (1 - own) / (n_classes - 1)
    return -torch.stack([weight @ own.lerp(other, float(e)).log_() for e in rates])


def _probability(
    own: Float[Tensor, "row form"], n_classes: int, loss: Float[Tensor, "rate form"]
) -> Float[Tensor, "row"]:
    """Return the probability that each label is wrong, averaged over what fits the labels."""
    share = (loss.min() - loss).exp() * (loss < loss.min() + NEAR)
    total = torch.zeros(len(own), dtype=torch.float64)
    for form in torch.nonzero(share.sum(0)).flatten().tolist():
        near = share[:, form] > 0
        right = own[:, form, None]
        wrong = RATES[near] * (1 - right) / (n_classes - 1)
        total += (wrong / (wrong + (1 - RATES[near]) * right)) @ share[near, form]
    return total / share.sum()


def _dispersion(
    error: Float[Tensor, "row"], index: Int[Tensor, "row"], weight: Float[Tensor, "row"]
) -> float:
    """Return how far sums over neighbouring rows vary, relative to sums of independent groups.

    Parameters
    ----------
    error : Float[Tensor, "row"]
        Whether the prediction is the label, less the probability of that.
    index : Int[Tensor, "row"]
        Number of each row's group.
    weight : Float[Tensor, "row"]
        Weight of each row.
    """
    part = weight * error
    part = part - weight * part.sum() / weight.sum()
    groups = torch.zeros(int(index.max()) + 1).double().index_add(0, index, part)
    alone = float(groups.square().sum())
    if alone <= 0 or len(groups) < 2 * max(BLOCKS):
        return 1.0
    sums = [torch.stack([b.sum() for b in part.tensor_split(k)]).square().sum() for k in BLOCKS]
    ratios = [float(s) / alone * k / (k - 1) for s, k in zip(sums, BLOCKS, strict=True)]
    return max(1.0, sum(ratios) / len(ratios))


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
