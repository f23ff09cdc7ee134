"""A classifier with a concept bottleneck: a layer of named concepts, then a layer of classes.

For embeddings with named concepts in the same space. Where no training is wanted, take
``ConceptMatrixSearch`` on the scores.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from sonde.core.errors import InputError, ShapeError
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.wording import plural
from sonde.engine.steps import Descent
from sonde.explain._held_groups import RowGroups
from sonde.stats import unit_rows

Loss = Literal["l1", "contrastive", "gumbel"]
DECIDES = 0.95
COLDEST = 0.1


@final
@dataclass(frozen=True, kw_only=True)
class ConceptBottleneckResult(Result):
    """``value`` is the accuracy on held-out rows, ``null`` the accuracy of the most frequent class.

    ``concept`` maps rows to concepts and ``weight`` concepts to classes.
    ``per_decision`` is how many concepts hold 95 % of what speaks for or against
    the class chosen, a mean over rows held out.
    """

    concept: Float[Tensor, "concept dim"]
    weight: Float[Tensor, "class concept"]
    bias: Float[Tensor, "class"]
    labels: Int[Tensor, "class"]
    loss: Loss
    per_decision: float = float("nan")

    def concepts(self, rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row concept"]:
        """Return the concept scores of each row; with ``gumbel``, a one-hot vector."""
        scores = _scores(rows, self.concept)
        if self.loss == "gumbel":
            return one_hot(scores.argmax(1), scores.shape[1]).to(scores)
        return scores

    def classify(self, rows: Float[Tensor, "row dim"]) -> Int[Tensor, "row"]:
        """Return the label of each row."""
        return self.labels[(self.concepts(rows) @ self.weight.T + self.bias).argmax(1)]

    def concepts_per_decision(self, rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the fewest concepts that make up 95 % of the chosen class's score."""
        concepts = self.concepts(rows)
        chosen = (concepts @ self.weight.T + self.bias).argmax(1)
        parts = (self.weight[chosen] * concepts).abs().sort(dim=1, descending=True).values
        mass = parts.cumsum(1)
        few = (mass >= DECIDES * mass[:, -1:]).int().argmax(1).double() + 1.0
        return torch.where(mass[:, -1] > 0, few, 0.0)


@final
@dataclass(frozen=True)
class ConceptBottleneck:
    """A layer of concepts and a layer of classes, trained on rows with named concepts.

    ``c = W_c h`` starts at the concepts' own embeddings, the answer is ``W_y c``. ``l1``: cross
    entropy of the classes plus ``l1 (|W_c|_1 + |W_y|_1)``. ``contrastive``: the layer learns the
    similarities of rows and embeddings, both ways, then the classes. ``gumbel``: each row learns to
    draw its concept, and each concept its rows, by a Gumbel softmax whose temperature falls to .1;
    classes then see one concept of each row.

    Range        accuracy [0, 1]; higher = the concepts carry the classes.
    Cost         ``2 steps`` passes over all rows and concepts.
    Assumes      rows and concepts in one space; labels.
    Differs      from the paper: all rows are one batch; ``l1`` weights are shrunk by proximal
                 steps, so that they are 0 and not small.

    Parameters
    ----------
    loss : {"l1", "contrastive", "gumbel"}, default="gumbel"
        How the layer of concepts is trained.
    l1 : float, default=1e-3
        Weight of the sum of absolute weights of both layers, for ``l1``.
    tau : float, default=1.0
        Temperature that ``gumbel`` starts with.
    steps : int, default=300
        Number of training steps of each of the two layers.
    rate : float, default=0.05
        Learning rate of Adam.
    held_out : float, default=0.25
        Share of the rows that accuracy is measured on.
    seed : int, default=0
        Seed of the initial weights and of the draws.

    Examples
    --------
    >>> label = torch.arange(80) % 4
    >>> found = ConceptBottleneck(steps=50).fit(torch.eye(6)[label], torch.eye(6), label)
    >>> found.value, found.per_decision
    (1.0, 1.0)

    References
    ----------
    semenov2024sparsecbm
    """

    loss: Loss = "gumbel"
    l1: float = 1e-3
    tau: float = 1.0
    steps: int = 300
    rate: float = 0.05
    held_out: float = 0.25
    seed: int = 0
    paper: ClassVar[str] = "semenov2024sparsecbm"

    def __post_init__(self) -> None:
        check_ranges(
            self,
            loss=("l1", "contrastive", "gumbel"),
            l1=">= 0",
            tau="> 0",
            rate="> 0",
            held_out="(0, 1)",
        )

    def fit(
        self,
        rows: Float[Tensor, "row dim"],
        bank: Float[Tensor, "concept dim2"],
        label: Int[Tensor, "row2"],
        group: Int[Tensor, "row"] | None = None,
    ) -> ConceptBottleneckResult:
        """Return the bottleneck, evaluated on held-out rows.

        Parameters
        ----------
        rows : Float[Tensor, "row dim"]
        bank : Float[Tensor, "concept dim"]
            An embedding for each concept.
        label : Int[Tensor, "row"]
        group : Int[Tensor, "row"], optional
            Group of each row. Groups are held out as a whole, and the error counts them; without,
            rows that copy each other are one group.

        Raises
        ------
        ShapeError
            If rows, concepts and labels do not fit.
        InputError
            If there are fewer than two classes, or a label of its own for each row.
        """
        if rows.shape[1] != bank.shape[1] or len(label) != len(rows):
            raise ShapeError(
                "ConceptBottleneck: expected rows and concepts of one width and a label for each "
                f"row, got {tuple(rows.shape)}, {tuple(bank.shape)} and "
                f"{plural(len(label), 'label')}."
            )
        labels, member = torch.unique(label, return_inverse=True)
        if not 2 <= len(labels) < len(rows):
            raise InputError(
                f"ConceptBottleneck: expected two classes or more of several rows each, got "
                f"{plural(len(labels), 'label')} of {plural(len(rows), 'row')}."
            )
        draw = torch.Generator().manual_seed(self.seed)
        groups = RowGroups.of("ConceptBottleneck", group, rows)
        order = torch.randperm(len(groups), generator=draw)
        parts = groups.parted("ConceptBottleneck", self.held_out, order)
        held, used = (part.to(rows.device) for part in parts)
        x, y = rows[used].double(), member[used]
        concept = unit_rows(bank.double())
        if self.loss != "l1":
            concept = self._aligned(x, concept, draw)
        concept, weight, bias = self._classes(x, concept, y, len(labels))
        result = ConceptBottleneckResult(
            concept=concept, weight=weight, bias=bias, labels=labels, loss=self.loss
        )
        right = (result.classify(rows[held].double()) == label[held]).double()
        value, groups = float(right.mean()), groups.at(held)
        usual = (member[held] == torch.bincount(y).argmax()).double().mean()
        judged = ConceptBottleneckResult(
            value=value,
            se=groups.error(right),
            null=float(usual),
            n=len(groups),
            range=(0.0, 1.0),
            direction="higher",
            conventions={"loss": self.loss, "rows": "held out", "se": "over groups held out"},
            concept=concept,
            weight=weight,
            bias=bias,
            labels=labels,
            loss=self.loss,
            per_decision=float(result.concepts_per_decision(rows[held].double()).mean()),
        )
        return groups.flagged(judged)

    def _aligned(self, x: Tensor, bank: Tensor, draw: torch.Generator) -> Tensor:
        """Return the concept layer, fitted to the similarities of rows and concept embeddings."""
        target = unit_rows(x) @ bank.T
        matching = target.argmax(1)
        concept = bank.clone().requires_grad_(True)
        present = torch.unique(matching)

        def loss(step: int) -> Tensor:
            scores = _scores(x, concept)
            if self.loss == "contrastive":
                rows, columns = target.softmax(1), target.T.softmax(1)
                return cross_entropy(scores, rows) + cross_entropy(scores.T, columns)
            tau = max(COLDEST, self.tau * (COLDEST / self.tau) ** (step / self.steps))
            noise = -(-torch.rand(scores.shape, generator=draw).clamp(1e-12).log()).log()
            warm = (scores + noise.to(scores)) / tau
            by_row = cross_entropy(warm, matching)
            drawn = warm.T.log_softmax(1)[present]
            owns = one_hot(matching, len(bank)).T[present].to(drawn)
            by_concept = -(drawn * owns / owns.sum(1, keepdim=True)).sum(1).mean()
            return by_row + by_concept

        Descent("ConceptBottleneck", [concept], self.rate).run(loss, range(self.steps))
        return concept.detach()

    def _classes(
        self, x: Tensor, concept: Tensor, y: Tensor, n_classes: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layers after the class layer is trained, with weights shrunk towards 0."""
        concept = concept.clone().requires_grad_(self.loss == "l1")
        weight = x.new_zeros(n_classes, len(concept)).requires_grad_(True)
        bias = x.new_zeros(n_classes).requires_grad_(True)
        learned = [weight, bias, *([concept] if self.loss == "l1" else [])]

        def loss(_: int) -> Tensor:
            scores = _scores(x, concept)
            if self.loss == "gumbel":
                scores = one_hot(scores.argmax(1), scores.shape[1]).to(scores)
            return cross_entropy(scores @ weight.T + bias, y)

        @torch.no_grad()
        def after(_: int) -> None:
            for tensor in [t for t in learned if t is not bias]:
                less = (tensor.abs() - self.rate * self.l1).clamp(min=0.0)
                tensor.copy_(tensor.sign() * less)

        Descent("ConceptBottleneck", learned, self.rate).run(loss, range(self.steps), after)
        return concept.detach(), weight.detach(), bias.detach()


def _scores(x: Tensor, concept: Tensor) -> Tensor:
    """Return the output of the concept layer."""
    return x.to(concept) @ concept.T
