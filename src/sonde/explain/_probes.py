"""Shared parts of probes: labelled rows, held-out answers, logistic fits, clustered errors."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.few_groups import effective_groups, grouped_error
from sonde.core.hashing import rank_key
from sonde.stats import ClassMomentsState, HashSampleState, error_if_all_agree
from sonde.stats.linear_classifiers import held_out_scores


@dataclass(frozen=True)
class LabelledRows:
    """Rows with one class each. Groups are numbered in the order of their sampling keys.

    ``group_hash`` is what the folds are chosen by.
    """

    x: Float[Tensor, "row dim"]
    member: Int[Tensor, "row"]
    labels: Int[Tensor, "class"]
    group: Int[Tensor, "row"]
    n_groups: int
    group_hash: Int[Tensor, "row"]

    @classmethod
    def of(cls, owner: str, rows: HashSampleState, label: HashSampleState) -> "LabelledRows":
        """Return the rows of a sample.

        Raises
        ------
        InputError
            If there is one class alone, a class for each row, or one group.
        """
        labels, member = torch.unique(label.rows, return_inverse=True)
        if len(labels) < 2:
            raise InputError(
                f"{owner}: expected rows of at least two classes, got {len(labels)}. Give the rows "
                "labels."
            )
        if len(labels) == len(member):
            raise InputError(
                f"{owner}: expected classes of several rows, got a different label for each of "
                f"{len(member)} rows. Give several rows the same class."
            )
        order, group = torch.unique(rank_key(rows.group_draw), return_inverse=True)
        if len(order) < 2:
            raise InputError(
                f"{owner}: expected rows of at least two groups, so that some can be held out, "
                "got one group. Add rows from more groups (documents), or leave the groups out."
            )
        own = member.to(rows.rows.device)
        return cls(rows.rows.double(), own, labels, group, len(order), rows.group)

    @property
    def label(self) -> Int[Tensor, "row"]:
        """Class of each row, as the data number it."""
        return self.labels.to(self.member.device)[self.member]

    def of_one_part(self, part: Int[Tensor, "row"]) -> Bool[Tensor, "class"]:
        """Return the classes whose rows all lie in one part, which no other part can predict.

        Raises
        ------
        InputError
            If every class has all of its rows in one part.
        """
        pairs = torch.stack([self.member.cpu(), part.cpu()])
        classes = torch.unique(pairs, dim=1)[0]
        alone = torch.bincount(classes, minlength=len(self.labels)) < 2
        if bool(alone.all()):
            raise InputError(
                f"expected a class with rows in several groups, got {len(self.labels)} classes "
                f"that each lie in a single fold of the {self.n_groups} groups: the probe that "
                "is tested on a class has never seen this class in training. Give rows of each "
                "class in more groups."
            )
        return alone

    def shares_error(self, right: Float[Tensor, "row"]) -> float:
        """Return the standard error of a mean over rows, with clusters given by the groups.

        Where all rows agree it is that of the exact interval of a fraction of groups.
        """
        if bool((right == right[:1]).all()):
            return error_if_all_agree(effective_groups(torch.bincount(self.group)))
        return clustered_error(right, self.group, self.n_groups) / len(right)


def clustered_error(values: Float[Tensor, "row"], group: Tensor, n_groups: int) -> float:
    """Return the standard error of the sum of centred values, with clusters given by the groups.

    From fewer than 32 groups it is widened by Student's t; groups of uneven sizes count as fewer.
    """
    centred = values.double() - values.double().mean()
    sums = centred.new_zeros(n_groups).index_add_(0, group.to(centred.device), centred)
    sizes = torch.bincount(group.to(centred.device), minlength=n_groups)
    return float(grouped_error(sums, sizes))


def held_out_right(
    rows: LabelledRows,
    label: Int[Tensor, "row"],
    folds: int,
    every: ClassMomentsState | None = None,
) -> tuple[Bool[Tensor, "row"], Bool[Tensor, "row"]]:
    """Return masks of held-out rows that the probe, and the majority class, predict correctly.

    ``every`` holds the moments of all rows, also of rows outside the sample.
    """
    classes, group = torch.unique(label), rows.group_hash.to(label.device)
    even, odds = held_out_scores(rows.x, label, group, classes, every=every, folds=folds)
    return classes[(even + odds).argmax(1)] == label, classes[odds.argmax(1)] == label


def logistic_fit(
    x: Float[Tensor, "row dim"], member: Int[Tensor, "row"], n_classes: int, l2: float
) -> tuple[Float[Tensor, "class dim"], Float[Tensor, "class"]]:
    """Return the weight and bias that minimise mean log loss plus ``l2 / 2 |W|^2`` on scaled rows.

    Rows are centred and divided by the root of the mean variance of a unit.
    """
    mean = x.mean(0)
    scale = (x - mean).square().mean().sqrt().clamp(min=1e-150)
    z = ((x - mean) / scale).cpu().numpy()
    truth = np.eye(n_classes)[member.cpu().numpy()]
    shape = (n_classes, z.shape[1] + 1)

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        w = v.reshape(shape)
        logits = z @ w[:, :-1].T + w[:, -1]
        top = logits.max(1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        pull = (np.exp(log_p) - truth) / len(z)
        slope = np.concatenate([pull.T @ z + l2 * w[:, :-1], pull.sum(0)[:, None]], 1)
        value = -(truth * log_p).sum() / len(z) + 0.5 * l2 * (w[:, :-1] ** 2).sum()
        return float(value), slope.ravel()

    options = {"maxiter": 300, "gtol": 1e-7}
    optimum = minimize(  # pyright: ignore[reportUnknownVariableType, reportCallIssue]
        loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options
    )
    w = torch.from_numpy(optimum.x.reshape(shape).copy()).to(x)
    weight = w[:, :-1] / scale
    return weight, w[:, -1] - weight @ mean
