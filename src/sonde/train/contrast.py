"""Pull related rows together and push all other rows apart.

Rows are views of one example, or share a label, a group, or a place in a picture. The value rises
with the number of candidates: compare values at one batch size only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from sonde.core.autocast import in_float32
from sonde.core.errors import BatchError, InputError
from sonde.stats.poincare import poincare_distance, to_ball
from sonde.stats.sinkhorn import balanced_assignment
from sonde.stats.soft_top_k import soft_top_k
from sonde.tap.hooks.latest import CopiedLock
from sonde.tap.training.ranks import of_all_ranks
from sonde.train._callers import OfStep

Denominator = Literal["softmax", "decoupled", "top_k", "uniform", "none"]
Metric = Literal["cosine", "dot", "euclidean", "poincare"]


@final
class Contrast(nn.Module):
    """Cross entropy of finding the positives of a row among all candidates (InfoNCE).

    Formula: ``-(s_ip - log sum_j exp s_ij)`` with ``s = similarity / temperature``, averaged over
    the positives of a row, then over the rows that have positives. Positives of a row are the other
    views of its example, or the other rows with its label: with ``group`` only rows in other
    groups, with ``place`` only rows within ``radius``; if rows have several labels, the rows that
    share one. Candidates are all other rows, the rows of ``negative`` and of the ``memory``. With
    ``prototype`` the candidates are a vector for each label in place of rows. With ``prototypes``
    the vectors are learned, and each view has to predict the balanced assignment of the other
    views.

    Range        [0, inf), nats; lower = positives nearer than all others. ``none`` and ``uniform``
                 can be negative.
    Cost         O(rows candidates dim) a step.
    Assumes      rows of at least one positive pair in the batch.
    Batching     log_mean: the value depends on the number of candidates.

    Parameters
    ----------
    temperature : float, default=0.1
        Divisor of the similarities, above 0.
    denominator : {"softmax", "decoupled", "top_k", "uniform", "none"}, default="softmax"
        Candidates that a positive is compared with: all; the positive itself and all non-positives;
        the ``k`` most similar (``-log`` of the positive's soft top-k weight); ``uniform``: all
        pairs of the batch at once, ``-s + log mean exp s``, which with cosines is alignment and
        uniformity; none: ``-2 s``.
    include_positive : bool, default=True
        Whether the positive itself stands among the candidates of ``decoupled``.
    metric : {"cosine", "dot", "euclidean", "poincare"}, default="cosine"
        Similarity. Distances count negatively; Euclidean distances are squared.
    k : int, default=0
        Number of hardest candidates that ``top_k`` keeps.
    softness : float, default=10.0
        Sharpness of ``top_k``, in place of the temperature.
    radius : float, default=0.7
        Distance within which ``place`` takes rows as positives, in the units of the places.
    concepts : sequence of int, optional
        The cluster of each unit (``sonde.measure.unit_clusters``): the largest unit of each cluster
        is contrasted in place of the units.
    prototypes : int, default=0
        Number of learned prototypes; they need views, and at least as many examples as prototypes.
    memory : int, default=0
        Number of rows of earlier steps that stay candidates, without gradients. ``terms.step()``
        calls ``step()``, which adds the last batch to them.
    gather : bool, default=True
        If several processes train, take the rows of all of them, so that gradients are those of
        one process with the whole batch. False if the rows given are those of all processes.

    References
    ----------
    oord2018cpc, wang2021dsm
    """

    paper: ClassVar[str] = "oord2018cpc"
    variants: ClassVar[Mapping[str, str]] = {
        "denominator='decoupled'": "gupta2024dexml",
        "denominator='top_k', k=3": "gupta2024dexml",
        "metric='poincare'": "doan2024hypow",
        "denominator='uniform', temperature=0.25": "wang2020understanding",
        "denominator='none', temperature=1.0": "xie2021pixpro",
        "prototypes=8": "nguyen2023joint2d3d",
        "concepts=(0, 0, 1)": "cococoncepts",
    }
    batching: ClassVar[str] = "log_mean"
    kept_rows: Tensor
    kept_label: Tensor
    examples: ClassVar[tuple[dict, ...]] = (
        {},
        {"temperature": 0.5, "denominator": "decoupled"},
        {"denominator": "top_k", "k": 3, "softness": 2.0},
        {"denominator": "uniform", "temperature": 0.25},
        {"metric": "poincare", "temperature": 1.0},
        {"metric": "euclidean", "temperature": 2.0, "concepts": (0, 0, 1, 1)},
    )

    def __init__(
        self,
        temperature: float = 0.1,
        denominator: Denominator = "softmax",
        include_positive: bool = True,
        metric: Metric = "cosine",
        k: int = 0,
        softness: float = 10.0,
        radius: float = 0.7,
        concepts: Sequence[int] | None = None,
        prototypes: int = 0,
        memory: int = 0,
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.gather = gather
        if not temperature > 0:
            raise InputError(f"Contrast: expected temperature above 0, got {temperature}.")
        for value, words in ((denominator, get_args(Denominator)), (metric, get_args(Metric))):
            if value not in words:
                raise InputError(f"Contrast: expected one of {', '.join(words)}, got {value!r}.")
        if (k > 0) != (denominator == "top_k") or min(memory, prototypes) < 0:
            raise InputError(
                "Contrast: expected k above 0 for denominator='top_k' and 0 for others, and no "
                f"negative sizes, got k={k}, memory={memory} and prototypes={prototypes}."
            )
        self.temperature, self.denominator, self.metric = temperature, denominator, metric
        self.include_positive, self.k, self.softness = include_positive, k, softness
        self.radius, self.memory = radius, memory
        self.concepts = None if concepts is None else torch.as_tensor(concepts).long()
        self.heads = nn.LazyLinear(prototypes, bias=False) if prototypes else None
        self.register_buffer("kept_rows", torch.empty(0, 0))
        self.register_buffer("kept_label", torch.empty(0, dtype=torch.int64))
        self._new: OfStep[tuple[Tensor, Tensor]] = OfStep()
        self._turn = CopiedLock()
        self.register_load_state_dict_pre_hook(_as_many_kept)

    @of_all_ranks("x", "label", "view", "group", "place")
    @in_float32
    def forward(
        self,
        x: Float[Tensor, "row dim"],
        label: Int[Tensor, "row"]
        | Int[Tensor, "row column"]
        | Bool[Tensor, "row column"]
        | None = None,
        view: Int[Tensor, "row"] | None = None,
        group: Int[Tensor, "row"] | None = None,
        place: Float[Tensor, "row axis"] | None = None,
        negative: Float[Tensor, "hard dim"] | None = None,
        prototype: Float[Tensor, "class dim"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean cross entropy of rows that have a positive.

        Parameters
        ----------
        x : Float[Tensor, "row dim"]
            All rows of view 0, then all of view 1, ...
        label : Int[Tensor, "row"] or Int[Tensor, "row column"], optional
            Negative for rows without a label. A matrix gives each row several labels: 1 or True in
            the columns of its labels, else 0.
        view : Int[Tensor, "row"], optional
        group : Int[Tensor, "row"], optional
            Positives share the label and differ in the group, such as a domain.
        place : Float[Tensor, "row axis"], optional
            Where each row lies in its picture: positives share the label, which numbers the
            pictures, and lie within ``radius``.
        negative : Float[Tensor, "hard dim"], optional
            Hard negatives, candidates of every row.
        prototype : Float[Tensor, "class dim"], optional
            Vectors of the classes 0, 1, ... of ``label``, or of the columns of its matrix.
        """
        if self.heads is not None:
            return self._assigned(x, view)
        if label is not None and label.ndim == 2:
            _check_matrix(label, prototype)
        rows = self._units(x)
        if prototype is not None:
            if label is None:
                raise InputError("Contrast: expected labels for prototypes, got none. Pass label.")
            scores = self._similar(rows, self._units(prototype))
            place_of = torch.arange(len(prototype), device=x.device)
            own = label != 0 if label.ndim == 2 else label[:, None] == place_of
            return self._held(scores, own, hides_itself=False)
        positive = _together(x, label, view, group, place, self.radius).fill_diagonal_(False)
        parts, marks = [rows], [positive]
        if negative is not None:
            parts.append(self._units(negative))
            marks.append(positive.new_zeros(len(x), len(negative)))
        if self.memory:
            if group is not None or place is not None:
                raise InputError(
                    "Contrast: expected no group and no place with a memory, which stores only "
                    "labels. Leave out memory, or group and place."
                )
            own = torch.full((len(x),), -1, device=x.device) if label is None else label
            self._new.put((rows.detach(), own))
            with self._turn:
                kept_rows, kept_label = self.kept_rows, self.kept_label
            if len(kept_rows):
                parts.append(kept_rows.to(rows))
                marks.append(_share_a_label(own, kept_label))
        every = torch.cat(marks, 1) if len(marks) > 1 else positive
        others = torch.cat(parts) if len(parts) > 1 else rows
        return self._held(self._similar(rows, others), every, hides_itself=True)

    def step(self) -> None:
        """Move the rows of the last batch into the memory."""
        for rows, label in self._new.taken():
            with self._turn:
                if len(self.kept_rows):
                    rows = torch.cat([rows, self.kept_rows.to(rows)])
                    label = torch.cat([label, self.kept_label.to(label)])
                self.kept_rows, self.kept_label = rows[: self.memory], label[: self.memory]

    def _units(self, x: Tensor) -> Tensor:
        """Return the rows, or the largest unit of each concept."""
        if self.concepts is None:
            return x
        if len(self.concepts) != x.shape[1]:
            raise InputError(
                f"Contrast: expected a concept for each of {x.shape[1]} units, got "
                f"{len(self.concepts)}."
            )
        member = self.concepts.to(x.device)
        return torch.stack([x[:, member == c].amax(1) for c in torch.unique(member)], 1)

    def _similar(self, x: Tensor, y: Tensor) -> Tensor:
        """Return similarities divided by the temperature, except for ``top_k``."""
        scale = 1.0 if self.denominator == "top_k" else self.temperature
        if self.metric == "cosine":
            return (normalize(x, dim=1) / scale) @ normalize(y, dim=1).T
        if self.metric == "dot":
            return (x / scale) @ y.T
        if self.metric == "euclidean":
            return -(x.unsqueeze(1) - y).square().sum(-1) / scale
        return -poincare_distance(to_ball(x), to_ball(y)) / scale

    def _held(self, scores: Tensor, positive: Tensor, *, hides_itself: bool) -> Tensor:
        """Return the loss, averaged over the positives of a row, then over rows with positives."""
        (row, place), n = positive.nonzero(as_tuple=True), len(scores)
        if not len(row):
            raise BatchError(
                "Contrast: expected positive pairs of rows, got none. Run the model on two "
                "views before the loss, or pass labels that repeat in a batch."
            )
        if self.denominator != "none" and len(row) == positive.numel() - n * hides_itself:
            raise BatchError(
                "Contrast: expected rows of two classes or examples, got a batch in which "
                "all rows are positives of each other. Draw batches with several classes or "
                "examples."
            )
        if hides_itself:
            scores[:, :n].fill_diagonal_(-torch.inf)
        count = torch.bincount(row, minlength=n)
        if self.denominator == "softmax" and bool((count == 1).all()):
            return cross_entropy(scores, place)
        own = scores[row, place]  # positives alone: a matrix of all pairs is the whole memory
        if self.denominator == "none":
            each = -2 * own
        elif self.denominator == "top_k":
            share = soft_top_k(scores, self.k, self.softness)[row, place]
            each = -share.clamp(min=1e-12).log()
        elif self.denominator == "uniform":
            pairs = scores.numel() - n * hides_itself
            each = scores.flatten().logsumexp(0) - math.log(pairs) - own
        elif self.denominator == "softmax":
            each = scores.logsumexp(1)[row] - own
        else:
            others = scores.masked_fill(positive, -torch.inf).logsumexp(1)[row]
            each = (torch.logaddexp(own, others) if self.include_positive else others) - own
        sums = each.new_zeros(n).index_add(0, row, each)
        return (sums[count > 0] / count[count > 0]).mean()

    def _assigned(self, x: Tensor, view: Tensor | None) -> Tensor:
        """Return the cross entropy of each view to the balanced assignment of the other views."""
        assert self.heads is not None
        n_views = view_count(x, view)
        if n_views < 2:
            raise InputError("Contrast: expected two views or more for prototypes, got one.")
        rows = normalize(x, dim=1)
        if isinstance(self.heads, nn.LazyLinear):
            self.heads(rows[:1])  # makes the weights
        scores = rows @ normalize(self.heads.weight, dim=1).T
        parts = scores.reshape(n_views, -1, scores.shape[1])
        if parts.shape[1] < parts.shape[2]:
            raise BatchError(
                f"Contrast: expected at least as many examples as prototypes, {parts.shape[2]}, "
                f"got {parts.shape[1]}."
            )
        wanted = torch.stack([balanced_assignment(part) for part in parts])
        predicted = (parts / self.temperature).log_softmax(2)
        pairs = [-(wanted[i] * predicted[j]).sum(1).mean()
                 for i in range(n_views) for j in range(n_views) if i != j]  # fmt: skip
        return torch.stack(pairs).mean()


def _as_many_kept(loss: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Allocate as many memory rows as the state holds."""
    for name in ("kept_rows", "kept_label"):
        if f"{prefix}{name}" in state:
            saved, own = state[f"{prefix}{name}"], loss.get_buffer(name)
            setattr(loss, name, torch.empty_like(saved, device=own.device))


def _together(
    x: Tensor,
    label: Tensor | None,
    view: Tensor | None,
    group: Tensor | None,
    place: Tensor | None,
    radius: float,
) -> Tensor:
    """Return a mask of the pairs of rows that belong together, (row, row)."""
    if label is None and (group is not None or place is not None):
        raise InputError(
            "Contrast: expected labels together with group or place, got none. Pass label."
        )
    if label is not None:
        same = _share_a_label(label, label)
        if group is not None:
            same = same & (group[:, None] != group[None])
        if place is not None:
            same = same & (torch.cdist(place, place) < radius)
        return same
    example = torch.arange(len(x), device=x.device) % (len(x) // view_count(x, view))
    return example[:, None] == example[None]


def _share_a_label(one: Tensor, two: Tensor) -> Tensor:
    """Return a mask of pairs of rows that have a label in common, (row of one, row of two)."""
    if one.ndim == 2:
        return (one != 0).float() @ (two != 0).float().T > 0
    return (one[:, None] == two) & (one >= 0)[:, None]


def _check_matrix(label: Tensor, prototype: Tensor | None) -> None:
    """Raise if a matrix of labels has other entries than 0 and 1, or other columns than classes."""
    classes = None if prototype is None else len(prototype)
    if label.shape[1] < 2 or not bool(((label == 0) | (label == 1)).all()):
        raise InputError(
            "Contrast: expected a matrix of labels with a column for each of at least two classes, "
            f"of 0 and 1, got shape {tuple(label.shape)} with entries up to {label.max().item()}. "
            "Pass label[:, 0] if it holds the number of one class for each row."
        )
    if classes not in (None, label.shape[1]):
        raise InputError(
            f"Contrast: expected a column of label for each of {classes} prototypes, got "
            f"{label.shape[1]} columns."
        )


def view_count(x: Float[Tensor, "row dim"], view: Int[Tensor, "row"] | None) -> int:
    """Return the number of views, which is 1 without a tensor of views.

    Raises
    ------
    InputError
        If the rows are not sorted by view, with equally many rows of each view: row i of every view
        must belong to the same example.
    """
    n = 1 if view is None else int(view.max()) + 1
    if view is not None and view.tolist() != [v for v in range(n) for _ in range(len(x) // n)]:
        raise InputError(
            "Contrast: expected all rows of view 0, then as many of view 1, and so on, got views "
            f"in another order or of unequal sizes. Sort by view: {view.tolist()[:8]} ..."
        )
    return n


@in_float32
def similarity_smoothing(
    x: Float[Tensor, "row place dim"],
    value: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "row place dim2"]:
    """Return each position as the sum of all positions, weighted by squared positive cosines.

    ``q_i = sum_j max(cos(x_i, x_j), 0)^2 g(x_j)``. Apply it to one of the two branches when the
    places of two crops are contrasted.

    Parameters
    ----------
    x : Float[Tensor, "row place dim"]
        States of each position.
    value : callable, optional
        The map ``g``, such as a linear layer that learns; without it ``g(x) = x``.

    Examples
    --------
    >>> similarity_smoothing(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])).tolist()
    [[[1.0, 0.0], [0.0, 2.0]]]

    References
    ----------
    xie2021pixpro
    """
    unit = normalize(x, dim=2)
    return (unit @ unit.transpose(1, 2)).clamp(min=0).square() @ (x if value is None else value(x))
