"""Unlearning with a gated adapter for each request, open only for its examples.

For requests that arrive one after the other while the data of the others may be gone. The model's
own weights stay, so whoever has these weights still has the forgotten knowledge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.edit import AffineMap, Edit, EditContext
from sonde.core.errors import InputError, ShapeError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.site import Reducer, Site
from sonde.tap import Gate, Scores, editing
from sonde.weights import as_model
from sonde.weights.tuning import Cycle, Trainee, mean_loss, tuned, with_copy


@final
@dataclass(frozen=True, eq=False)
class LowRankAdapter(Edit):
    """Add a low-rank map: ``x + strength (x @ down.T) @ up.T``.

    Parameters
    ----------
    down : Float[Tensor, "rank dim"]
        Matrix that maps states to the low rank.
    up : Float[Tensor, "dim rank"]
        Matrix that maps the low rank back to states.
    strength : float, default=1.0
        Strength of the edit: 0 changes nothing.

    References
    ----------
    gao2025o3
    """

    down: Float[Tensor, "_rank _dim"]
    up: Float[Tensor, "_dim _rank"]
    strength: float = 1.0
    paper: ClassVar[str] = "gao2025o3"

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.shape != self.up.T.shape:
            raise ShapeError(
                "LowRankAdapter: expected down (rank, dim) and up (dim, rank), got "
                f"{tuple(self.down.shape)} and {tuple(self.up.shape)}."
            )

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the states plus the adapter's output."""
        if self.strength == 0.0:
            return x
        if x.shape[-1] != self.down.shape[1]:
            raise ShapeError(
                f"LowRankAdapter: expected dim={self.down.shape[1]}, got dim={x.shape[-1]} at "
                f"{site}. Apply it where it was learned."
            )
        far = nn.functional.linear(x, self.down.to(x))
        return x + self.strength * nn.functional.linear(far, self.up.to(x))

    def as_affine(self) -> AffineMap:
        """Return the adapter as an affine map."""
        return AffineMap(left=self.strength * self.up, right=self.down.T)


@final
@dataclass(frozen=True)
class GatedAdapter:
    """Learn a low-rank adapter that makes a model unlearn some examples. Trained.

    The adapter sits at one site of the frozen model. It minimises the sum of three terms: the
    cross-entropy to the uniform distribution on the examples to forget, the cross-entropy with the
    truth on ``retain`` if given, and ``overlap`` times the squared products of its directions with
    those of earlier adapters, so that requests read different directions. Open it behind a gate,
    which any fitted detector makes (``soft_gate``): ``sonde.editing(model, adapter, site,
    gate=gate)``.

    Range        starts as the model itself, bit for bit; the model's weights stay.
    Cost         ``epochs`` passes over the forget data through the frozen model.
    Assumes      the forget examples are told from others by a detector at an earlier site.
    Differs      from the paper: ignorance is taught instead of random answers. The gate is any
                 detector; ``RequestDetector`` is close to that of the paper.

    Parameters
    ----------
    rank : int, default=8
        Rank of the adapter.
    overlap : float, default=0.1
        Weight of the penalty on what it shares with earlier adapters.
    rate : float, default=0.01
        Learning rate of Adam.
    epochs : int, default=10
        Number of passes over the examples.
    seed : int, default=0
        Seed of the order of examples.

    References
    ----------
    gao2025o3
    """

    rank: int = 8
    overlap: float = 0.1
    rate: float = 0.01
    epochs: int = 10
    seed: int = 0
    paper: ClassVar[str] = "gao2025o3"

    def __post_init__(self) -> None:
        check_ranges(self, rank="> 0", rate="> 0", epochs="> 0")

    def learn(
        self,
        model: Model | nn.Module,
        site: str | Site,
        dim: int,
        forget: Inputs,
        retain: Inputs | None = None,
        earlier: Sequence[LowRankAdapter] = (),
        progress: bool = True,
    ) -> LowRankAdapter:
        """Return the adapter of a request. The model is not changed.

        Parameters
        ----------
        model : Model or nn.Module
        site : str or Site
            Where it is added, the same for all requests.
        dim : int
            Width of the states there.
        forget : Inputs
            With labels, or texts.
        retain : Inputs, optional
            Examples that the adapter should leave alone even without a gate.
        earlier : sequence of LowRankAdapter
            Adapters of earlier requests.
        progress : bool, default=True

        Raises
        ------
        InputError
            If there is nothing to forget.
        """
        if not len(forget):
            raise InputError("GatedAdapter.learn: expected examples to forget, got none.")
        start = with_copy(as_model(model).module).requires_grad_(False)
        draw = torch.Generator().manual_seed(self.seed)
        near = next(start.parameters())
        down = torch.randn(self.rank, dim, generator=draw) / dim**0.5
        learned = [nn.Parameter(x.to(near)) for x in (down, torch.zeros(dim, self.rank))]
        for name, parameter in zip(("_down", "_up"), learned, strict=True):
            start.register_parameter(name, parameter)  # of the copy: so it is trained
        others = None if retain is None else Cycle(retain)

        def objective(trainee: Trainee, batch: InputBatch) -> Tensor:
            loss = -trainee.losses.answers(batch).log_p.mean()
            if others is not None:
                loss = loss + mean_loss(trainee, others.next(trainee.draw))
            return loss + self.overlap * overlap(learned[0], earlier)

        with editing(start, LowRankAdapter(learned[0], learned[1]), site, here=True):
            tuned(
                model,
                forget,
                objective,
                rate=self.rate,
                epochs=self.epochs,
                seed=self.seed,
                label="adapter",
                start=start,
                progress=progress,
            )
        return LowRankAdapter(learned[0].detach().cpu(), learned[1].detach().cpu())


def overlap(
    down: Float[Tensor, "rank dim"], earlier: Sequence[LowRankAdapter]
) -> Float[Tensor, ""]:
    """Return the squared overlap of an adapter's directions with those of earlier adapters."""
    overlaps = [(down @ other.down.to(down).T).square().sum() for other in earlier]
    return torch.stack(overlaps).sum() if overlaps else down.new_zeros(())


def soft_gate(
    scorer: Scores,
    others: Float[Tensor, "row"],
    own: Float[Tensor, "row2"],
    site: str | Site | Sequence[str | Site] | None = None,
    reducer: str | Reducer = "mean",
    *,
    shut_for: float = 0.95,
    open_for: float = 0.5,
) -> Gate:
    """Return a gate that is open for a request's examples, and closed for nearly all others.

    Between the scores of the two kinds it opens in proportion; either kind may score higher.

    Parameters
    ----------
    scorer : object with ``score(x) -> row``
        Scorer of a detector that was fitted on the examples to forget.
    others, own : Float[Tensor, "row"], Float[Tensor, "row2"]
        Scores of examples to leave alone, and of the request's; best of examples outside the
        scorer's fit.
    site, reducer
        Where and how the scorer's rows were read.
    shut_for, open_for : float
        Share of ``others`` for which it is shut, and of ``own`` for which it is wide open.

    Raises
    ------
    InputError
        If the scores do not tell the two apart.

    Examples
    --------
    >>> from sonde.detect import Mahalanobis
    >>> scorer = Mahalanobis(shrinkage=0.0).fit([[0.0], [2.0]])
    >>> gate = soft_gate(scorer, torch.tensor([8.0, 9.0]), torch.tensor([1.0, 2.0, 3.0]))
    >>> round(gate.threshold, 2), gate.full
    (8.05, 2.0)
    """
    rising = float(own.median()) > float(others.median())
    start = float(others.double().quantile(shut_for if rising else 1 - shut_for))
    full = float(own.double().quantile(1 - open_for if rising else open_for))
    if (full > start) != rising or full == start:
        raise InputError(
            f"soft_gate: expected {open_for:.0%} of the request's scores beyond {shut_for:.0%} of "
            f"the others, got {full:.4g} against {start:.4g}. Take another detector or site, or "
            "a smaller fraction."
        )
    return Gate(scorer, start, site, reducer, full)
