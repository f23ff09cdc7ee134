"""Class probabilities from a bank of concepts, where every concept of a class adds evidence.

For encoders whose inputs and texts share a space, and banks in which some concepts are noise.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError, ShapeError
from sonde.core.keywords import InitSignature, checked_new
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.stats import unit_rows


@final
@dataclass(frozen=True, kw_only=True)
class ConceptMarginalResult(Result):
    """``value`` is the posterior of each class; ``responsibility`` is each concept's part of it.

    ``responsibility[i, z]`` is ``p(z | x_i, y)`` for the class y that concept z belongs to: the
    values of one class add up to 1.
    """

    value: Float[Tensor, "row class"]  # pyright: ignore[reportGeneralTypeIssues]
    responsibility: Float[Tensor, "row concept"]

    @property
    def predicted(self) -> Int[Tensor, "row"]:
        """The most probable class."""
        return self.value.argmax(1)


@final
@dataclass(frozen=True)
class ConceptMarginal:
    """Posterior of a class, as a sum over the concepts that belong to the class.

    ``mixture``: ``p(y | x) ~ p(y) sum_{z of y} w_z L(x, z)`` with ``L = softmax over all z of
    cos(x, e_z) / tau``, the weights of a class adding up to 1. ``average`` and ``confidence``:
    ``p(y | x) ~ p(y) exp(sum_{z of y} a_z(x) cos(x, e_z) / tau)``, where the weights ``a`` of a
    class add up to 1 and are ``w_z``, or proportional to ``w_z L(x, z)``: the row itself selects
    its concepts. With augmented views of a row, ``L`` is the mean over the row and its views, so
    a concept that matches by accident counts less.

    Range        posterior [0, 1], rows add up to 1.
    Cost         one product of the rows and their views with the bank.
    Assumes      rows and concepts in one space.
    Differs      the paper's abstract names average, confidence and test-time augmentation, and
                 gives no formulas: these are ours.

    Parameters
    ----------
    tau : float, default=0.07
        Temperature of the cosines.
    likelihood : {"mixture", "average", "confidence"}, default="mixture"
        How the concepts of a class are joined: as a sum of likelihoods, or as cosines weighted
        equally or by the concept's likelihood.

    Examples
    --------
    >>> bank = torch.eye(4)
    >>> found = ConceptMarginal().fit(bank[:1], bank, torch.tensor([0, 0, 1, 1]))
    >>> found.value.round(decimals=3).tolist()
    [[1.0, 0.0]]

    References
    ----------
    chbr2024concepts
    """

    __new__ = checked_new
    __signature__ = InitSignature()
    call_form: ClassVar[str] = "{name}().fit(rows, bank, owner)"
    tau: float = 0.07
    likelihood: Literal["mixture", "average", "confidence"] = "mixture"
    paper: ClassVar[str] = "chbr2024concepts"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"tau": 0.5},
        {"likelihood": "average"},
        {"likelihood": "confidence"},
    )

    def __post_init__(self) -> None:
        check_ranges(self, tau="> 0")

    def fit(
        self,
        rows: Float[Tensor, "row dim"],
        bank: Float[Tensor, "concept dim"],
        owner: Int[Tensor, "concept"],
        weights: Float[Tensor, "concept"] | None = None,
        prior: Float[Tensor, "class"] | None = None,
        views: Float[Tensor, "_ view _"] | None = None,
    ) -> ConceptMarginalResult:
        """Return the posterior of each class.

        Parameters
        ----------
        rows : Float[Tensor, "row dim"]
        bank : Float[Tensor, "concept dim"]
        owner : Int[Tensor, "concept"]
            Class of each concept, from 0.
        weights : Float[Tensor, "concept"], optional
            Prior weights; where concepts were drawn by a proposal, its importance weights.
        prior : Float[Tensor, "class"], optional
            Of the classes; counts will do. Uniform by default.
        views : Float[Tensor, "row view dim"], optional
            Augmented views of each row, over which likelihoods are averaged. Not for ``average``,
            which has no likelihood.

        Raises
        ------
        ShapeError
            If widths or numbers do not fit.
        InputError
            If a class has no concept, or views are given for ``average``.
        """
        n_classes = self._check(rows, bank, owner, views)
        cosine = _cosines(rows, bank) / self.tau
        prior_weight = torch.ones(len(bank)) if weights is None else weights
        weight = prior_weight.to(cosine).expand_as(cosine)
        joint = weight / _by_class(weight, owner, n_classes)[:, owner].clamp(min=1e-300)
        if self.likelihood != "average":
            joint = joint * self._likelihood(cosine, bank, views)
        of_class = _by_class(joint, owner, n_classes)
        part = joint / of_class[:, owner].clamp(min=1e-300)
        if self.likelihood != "mixture":
            score = _by_class(part * cosine, owner, n_classes)
            of_class = (score - score.amax(1, keepdim=True)).exp()
        share = torch.ones(n_classes) if prior is None else prior
        posterior = of_class * share.to(of_class)
        return ConceptMarginalResult(
            value=posterior / posterior.sum(1, keepdim=True),
            n=len(rows),
            range=(0.0, 1.0),
            direction="higher",
            conventions={"tau": self.tau, "likelihood": self.likelihood, "se": "none"},
            responsibility=part,
        )

    def _check(self, rows: Tensor, bank: Tensor, owner: Tensor, views: Tensor | None) -> int:
        if rows.shape[1] != bank.shape[1] or len(owner) != len(bank):
            raise ShapeError(
                "ConceptMarginal: expected rows and concepts of one width, and a class for each "
                f"concept, got rows {tuple(rows.shape)}, bank {tuple(bank.shape)} and "
                f"{len(owner)} classes."
            )
        if views is not None:
            if self.likelihood == "average":
                raise InputError(
                    "ConceptMarginal: expected no views for likelihood='average', got "
                    f"{views.shape[1]} of each row. Take 'mixture' or 'confidence'."
                )
            if views.shape[::2] != rows.shape:
                raise ShapeError(
                    "ConceptMarginal: expected views (row view dim) of the rows "
                    f"{tuple(rows.shape)}, got {tuple(views.shape)}."
                )
        n_classes = int(owner.max()) + 1
        empty = torch.nonzero(torch.bincount(owner, minlength=n_classes) == 0).flatten().tolist()
        if empty:
            raise InputError(
                f"ConceptMarginal: expected a concept for every class, got none for {empty[:5]}."
            )
        return n_classes

    def _likelihood(
        self, cosine: Float[Tensor, "row concept"], bank: Tensor, views: Tensor | None
    ) -> Float[Tensor, "row concept"]:
        likelihood = cosine.softmax(-1)
        if views is None:
            return likelihood
        n = views.shape[1]
        seen = (_cosines(views.flatten(0, 1), bank) / self.tau).softmax(-1)
        return (likelihood + seen.unflatten(0, (-1, n)).sum(1)) / (n + 1)


def _cosines(
    rows: Float[Tensor, "row dim"], bank: Float[Tensor, "concept dim"]
) -> Float[Tensor, "row concept"]:
    return unit_rows(rows.double()) @ unit_rows(bank.double()).T


def _by_class(
    x: Float[Tensor, "row concept"], owner: Int[Tensor, "concept"], n_classes: int
) -> Float[Tensor, "row class"]:
    return x.new_zeros(len(x), n_classes).index_add_(1, owner, x)
