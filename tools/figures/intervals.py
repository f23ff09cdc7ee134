"""Print how often intervals from few groups hold their mean.

The intervals of ``sonde.metrics`` and the errors that are no result of an instrument: of two
models' answers, of a softened classifier, of edits, of cache rules, of recipes. 200 rows in groups
that share a part of what they hold, or as many rows as groups where rows are not grouped.
``coverage`` is how often an interval holds the mean of the values of all draws.
"""

import statistics
from collections.abc import Callable

import torch
from tools.figures._table import Row, Table, Words, chosen, head
from torch import Tensor

from sonde import metrics
from sonde.compress import RecentCache
from sonde.run.changing.judge import difference
from sonde.run.comparing.two_answers import summary
from sonde.run.compressing.caches import Sums
from sonde.run.training.figures import TaskFigures, compared
from sonde_studies.parts.choice import balanced
from sonde_studies.parts.figures import error_of, resampled_error

Interval = tuple[float, float, float]
N, SIDE = 200, 8


class World:
    """Rows of groups: a score, its truth, a stated probability and pictures."""

    def __init__(self, n_groups: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        self.group = torch.arange(N) % n_groups
        gain, level, sure = (1 + 0.5 * normal(n_groups))[self.group], normal(n_groups), normal(N)
        self.truth = (torch.rand(N, generator=random) < 0.4).long()
        self.score = gain * self.truth + 0.5 * level[self.group] + normal(N)
        self.other = 0.7 * gain * self.truth + 0.5 * level[self.group] + normal(N)
        self.stated = torch.sigmoid(sure + 0.5)
        chance = torch.sigmoid(sure + 0.6 * level[self.group])
        self.right = (torch.rand(N, generator=random) < chance).long()
        self.each = torch.exp(0.5 * normal(n_groups))  # a figure of each group, skewed
        self.yes = (torch.rand(n_groups, generator=random) < 0.7).double()
        self.masks = torch.zeros(n_groups, SIDE, SIDE)
        self.masks[:, 2:5, 1:6] = 1
        maps = normal(n_groups, SIDE, SIDE) + self.masks * (1 + 0.5 * normal(n_groups, 1, 1))
        self.maps = maps + 0.3 * normal(n_groups, 1, 1)
        place = torch.arange(5).repeat(n_groups)
        self.trajectory = torch.arange(n_groups).repeat_interleave(5)
        self.wrong = (place == torch.randint(5, (n_groups,), generator=random)[self.trajectory]) * 1
        self.step = 1.2 * self.wrong + normal(5 * n_groups)
        self.n_groups = n_groups


def ends(found: metrics.Metric) -> Interval:
    """Return value and interval of a metric."""
    return float(found.value), found.low, found.high


def around(value: float, se: float) -> Interval:
    """Return value and interval of a figure with a standard error."""
    return value, value - 1.96 * se, value + 1.96 * se


def roc_at(w: World) -> Interval:
    """Return the ROC curve's height and band at a false-alarm rate of .2."""
    found = metrics.roc(w.score, w.truth, w.group)
    if not len(found.grid):
        return float("nan"), float("nan"), float("nan")
    low, high = float(found.low[20]), float(found.high[20])
    usual = w.score[w.truth == 0].sort().values
    bar = usual[-int(0.2 * len(usual)) - 1]
    return float((w.score[w.truth == 1] > bar).double().mean()), low, high


def gained(w: World) -> Interval:
    """Return the gain in accuracy of one training over another, as ``sonde train`` shows it."""
    counts = torch.bincount(w.group).double()
    sums = [torch.zeros(w.n_groups).double().index_add_(0, w.group, x.double())
            for x in (w.right, (w.score > 0.5).long() == w.truth)]  # fmt: skip
    one, two = (TaskFigures(counts, s, counts) for s in sums)
    found = compared(one, two, "right")
    return found["value"], found["low"], found["high"]


def of_edit(w: World) -> Interval:
    """Return the mean change of a loss under an edit."""
    found = difference(w.score, [bytes([g]) for g in w.group.tolist()])
    return around(found.value, found.se)


def of_answers(w: World) -> Interval:
    """Return the share of equal answers of two models."""
    each = torch.stack([w.right.double(), *[w.score] * 5], 1)
    found = summary(each, [bytes([g]) for g in w.group.tolist()])
    return around(found.same, found.same_se)


def of_cache(w: World) -> Interval:
    """Return the mean divergence of texts of a cache rule."""
    sums = Sums()
    sums.texts, sums.memory, sums.time = w.each.tolist(), [0.0], [1.0]
    sums.groups = [bytes([g]) for g in range(w.n_groups)]
    sums.tokens, sums.same = [w.each], [w.each > 0]
    found = sums.trial(RecentCache(0.5))
    return around(found.divergence_nats, found.se)


def of_fractions(w: World) -> Interval:
    """Return the balanced accuracy of a recipe."""
    half = torch.arange(w.n_groups) % 2
    return around(*balanced(w.each.numpy(), half.numpy()))


INTERVALS: dict[str, Callable[[World], Interval]] = {
    "metrics.auroc": lambda w: ends(metrics.auroc(w.score, w.truth, w.group)),
    "metrics.aupr": lambda w: ends(metrics.aupr(w.score, w.truth, w.group)),
    "metrics.fpr_at_tpr": lambda w: ends(metrics.fpr_at_tpr(w.score, w.truth, w.group)),
    "metrics.auroc_within": lambda w: ends(metrics.auroc_within(w.score, w.truth, w.group)),
    "metrics.brier_score": lambda w: ends(metrics.brier_score(w.stated, w.right, w.group)),
    "metrics.expected_calibration_error": lambda w: ends(
        metrics.expected_calibration_error(w.stated, w.right, w.group, bins=5)
    ),
    "metrics.prediction_rejection": lambda w: ends(
        metrics.prediction_rejection(-w.stated, w.right, w.group)
    ),
    "metrics.pixel_auroc": lambda w: ends(metrics.pixel_auroc([*w.maps], [*w.masks])),
    "metrics.aupro": lambda w: ends(metrics.aupro([*w.maps], [*w.masks])),
    "metrics.localisation": lambda w: ends(metrics.localisation(w.step, w.wrong, w.trajectory)),
    "metrics.joint_match": lambda w: ends(
        metrics.joint_match((w.step > 1) * 1, w.wrong, w.trajectory)
    ),
    "metrics.step_f1": lambda w: ends(metrics.step_f1((w.step > 1) * 1, w.wrong, w.trajectory)),
    "metrics.roc at .2": roc_at,
    "metrics.difference": lambda w: ends(
        metrics.difference(*(metrics.auroc(s, w.truth, w.group) for s in (w.score, w.other)))
    ),
    "sonde train, gain of one seed": gained,
    "sonde edit, change of a loss": of_edit,
    "sonde compare, equal answers": of_answers,
    "sonde cache, divergence": of_cache,
    "recipes, mean": lambda w: around(float(w.each.mean()), error_of(w.each.numpy())),
    "recipes, mean of groups": lambda w: around(
        float(w.score.mean()), error_of(w.score.numpy(), w.group.numpy())
    ),
    "recipes, resampled": lambda w: around(float(w.each.mean()), resampled_error(w.each, 0)),
    "recipes, balanced accuracy": of_fractions,
}


def table(words: Words = (), *, draws: int = 200, groups: tuple[int, ...] = (2, 5, 10)) -> Table:
    """Print the table.

    Parameters
    ----------
    words
        Intervals whose names hold one of these words.
    draws
        Draws of the world for each cell.
    groups
        Numbers of groups.
    """
    yield head("interval", *(f"{n} groups" for n in groups))
    for name, interval in chosen(INTERVALS, words):
        yield Row((name,), lambda f=interval: [_cell(f, n, draws) for n in groups])


def _cell(interval: Callable[[World], Interval], n_groups: int, draws: int) -> str:
    found = [interval(World(n_groups, seed)) for seed in range(draws)]
    values = [value for value, _, _ in found if value == value]
    mean = statistics.mean(values) if values else float("nan")
    held = [low <= mean <= high for _, low, high in found]
    none = sum(low != low for _, low, _ in found)
    return f"{statistics.mean(held):.2f}" + (f" ({none} none)" if none else "")
