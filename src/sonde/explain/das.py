"""The subspace in which a network represents a variable of a causal model.

``InterchangeIntervention`` judges a whole site, some units or a given subspace; ``Das`` learns the
subspace. A subspace that was learned can work through dormant parts: run ``SubspacePatch`` on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sonde.core.edit import Edit, EditContext, check_width
from sonde.core.errors import InputError, ShapeError
from sonde.core.explainer import Explainer
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.site import Site
from sonde.engine.progress import Bar
from sonde.engine.steps import Descent, seeded
from sonde.explain._held_groups import RowGroups
from sonde.explain._runs import TwoRuns
from sonde.explain.objective import Objective
from sonde.tap.model.sites import Pattern

BATCH = 64


@final
@dataclass(frozen=True, eq=False)
class Interchange(Edit):
    """Replace the component in a subspace by the component in another run.

    ``x + R R'(source - x)``; a second application changes nothing. The other run's states are
    ``others={"source": ...}`` of ``sonde.editing``.

    Parameters
    ----------
    subspace : Float[Tensor, "dim k"]
        Orthonormal columns.
    strength : float, default=1.0
        Weight of the other run's component, in [0, 1]; 0 changes nothing.
    """

    subspace: Float[Tensor, "dim k"]
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the states with the component of the other run."""
        if self.strength == 0.0:
            return x
        check_width("Interchange", self.subspace[:, 0], x, site)
        if "source" not in context.others:
            raise InputError(
                "Interchange: expected the states of the other run, got none. Open the edit with "
                "others={'source': tap.rows}."
            )
        return swapped(x, context.others["source"], self.strength * self.subspace, self.subspace)


@final
@dataclass(frozen=True, kw_only=True)
class Alignment(Result):
    """Fraction of interchanges after which the model gives the causal model's answer.

    ``value`` is the share of pairs with the expected answer; ``null`` the same for a random
    subspace of this size; ``unpatched`` without any exchange. ``subspace`` is None if the whole
    site was exchanged.
    """

    title: ClassVar[str] = "Interchange accuracy"
    subspace: Float[Tensor, "dim k"] | None
    unpatched: float
    losses: tuple[float, ...] = ()

    def edit(self, strength: float = 1.0) -> Interchange:
        """Return the interchange as an edit.

        Raises
        ------
        InputError
            If the whole site was exchanged: take ``Replace``.
        """
        if self.subspace is None:
            raise InputError(
                "Alignment.edit: expected an alignment of a subspace, got an alignment that "
                "exchanges the whole site. Use Replace."
            )
        return Interchange(self.subspace, strength)


@final
@dataclass(frozen=True)
class InterchangeIntervention(Explainer):
    """Fraction of pairs with the causal model's answer after a variable takes its source value.

    States of the source run, in a subspace, some units or the whole site, come into the base run.

    Range        [0, 1]; higher = the site holds the variable; compare with ``null`` and
                 ``unpatched``.
    Cost         two forwards, and three of the rest of the model.
    Assumes      pairs for which the variable matters: else ``unpatched`` is high too.

    Parameters
    ----------
    units : sequence of int, optional
        Units that are exchanged; by default the whole site.
    seed : int, default=0
        Seed of the random subspace that gives the null.

    References
    ----------
    geiger2024das
    """

    units: Sequence[int] | None = None
    seed: int = 0
    paper: ClassVar[str] = "geiger2024das"

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        source: Any,
        expected: Int[Tensor, "pair"],
        site: Pattern,
        position: int | None = None,
        subspace: Float[Tensor, "dim k"] | None = None,
        group: Int[Tensor, "pair"] | None = None,
    ) -> Alignment:
        """Return the fraction of pairs that give the expected answer.

        Parameters
        ----------
        model : Model or nn.Module
        inputs, source : Tensor, tuple or dict
            What the model is called with, a pair of base and source for each row.
        expected : Int[Tensor, "pair"]
            Answer (class or token) of the causal model to the base with the source's variable.
        site : pattern
        position : int, optional
            The position that is exchanged; by default all positions.
        subspace : Float[Tensor, "dim k"], optional
            Orthonormal columns, instead of ``units``.
        group : Int[Tensor, "pair"], optional
            Group of each pair, which the error counts; without, each pair is its own.
        """
        pairs = _Pairs(model, inputs, source, expected, site, position)
        if self.units is not None and subspace is None:
            subspace = torch.eye(pairs.width)[:, list(self.units)]
        own = torch.arange(len(expected)) if group is None else group
        groups = RowGroups.of("InterchangeIntervention", own, expected)
        return pairs.alignment(subspace, groups, self.seed, repr(self))


@final
@dataclass(frozen=True)
class Das:
    """The subspace of a site whose interchange between runs gives the causal model's answers.

    ``h_b + R R'(h_s - h_b)`` with orthonormal columns R, trained on the cross-entropy of the
    expected answers; judged on pairs that training did not see.

    Range        interchange accuracy in [0, 1]; higher = better aligned.
    Cost         ``steps`` forwards and backwards of a batch of 64, from the site on.
    Assumes      pairs in random order: the last ones are held out. Success does not show that the
                 model uses the subspace: see ``SubspacePatch``. A control is the same search in a
                 model with random weights.

    Parameters
    ----------
    k : int, default=1
        Directions.
    steps : int, default=300
        Number of training steps.
    rate : float, default=0.001
        Learning rate of Adam.
    held_out : float, default=0.25
        Share of the pairs.
    seed : int, default=0
        Seed of the first subspace and of the pairs that are held out.

    References
    ----------
    geiger2024das
    """

    k: int = 1
    steps: int = 300
    rate: float = 1e-3
    held_out: float = 0.25
    seed: int = 0
    paper: ClassVar[str] = "geiger2024das"

    def __post_init__(self) -> None:
        check_ranges(self, k=">= 1", steps=">= 1", held_out="(0, 1)")

    def fit(
        self,
        model: Model | nn.Module,
        base: Tensor,
        source: Tensor,
        expected: Int[Tensor, "pair"],
        site: Pattern,
        position: int | None = None,
        *,
        group: Int[Tensor, "pair"] | None = None,
        progress: bool = False,
    ) -> Alignment:
        """Return the subspace, evaluated on held-out pairs.

        Arguments are those of ``InterchangeIntervention.explain``, ``base`` its inputs. Groups are
        held out as a whole; without, pairs that copy each other are one group.

        Raises
        ------
        InputError
            If there are too few pairs, or the loss stops being a number.
        """
        n = len(expected)
        if not 0 < round(self.held_out * n) < n:
            raise InputError(f"Das: expected at least 4 pairs, got {n}.")
        groups = RowGroups.of("Das", group, base, source)
        last, first = groups.parted("Das", self.held_out, torch.arange(len(groups)).flip(0))
        held, used = last.sort().values, first.sort().values
        batches = [
            _Pairs(model, base[rows], source[rows], expected[rows], site, position)
            for rows in used.split(BATCH)
        ]
        width = batches[0].width
        if self.k > width:
            raise InputError(f"Das: expected k of at most {width} at {site}, got {self.k}.")
        with seeded(self.seed):
            turn = nn.Linear(width, self.k, bias=False)
            parametrizations.orthogonal(turn)
            subspace, losses = self._trained(turn, batches, progress)
        judged = _Pairs(model, base[held], source[held], expected[held], site, position)
        return judged.alignment(subspace, groups.at(held), self.seed, repr(self), losses)

    def _trained(
        self, turn: nn.Linear, batches: Sequence["_Pairs"], progress: bool
    ) -> tuple[Float[Tensor, "dim k"], tuple[float, ...]]:
        with Bar("align", self.steps, shown=progress) as bar:
            losses = Descent("Das", turn.parameters(), self.rate).run(
                lambda pairs: pairs.loss(turn.weight.T),
                islice(cycle(batches), self.steps),
                lambda _: bar.advance(1),
            )
        return turn.weight.T.detach().clone(), losses


class _Pairs:
    """Base and source runs of some pairs at one site, and the expected answers."""

    def __init__(
        self,
        model: Model | nn.Module,
        base: Any,
        source: Any,
        expected: Int[Tensor, "pair"],
        site: Pattern,
        position: int | None,
    ) -> None:
        goal = Objective("log_prob", target=expected)
        self.runs = TwoRuns(model, base, source, goal)
        (self.site,) = self.runs.sites(site)
        _, old = self.runs.states("clean", [self.site])
        _, new = self.runs.states("corrupt", [self.site])
        self.old, self.new = old[self.site], new[self.site]
        self.expected, self.position = expected, position
        self.width = self.old.shape[-1]
        if position is None:
            return
        if self.old.ndim < 3:
            raise InputError(
                f"interchange: expected states with positions at {self.site}, got shape "
                f"{tuple(self.old.shape)}. Leave position out."
            )
        n = self.old.shape[1]
        if not -n <= position < n:
            raise InputError(f"interchange: expected a position in {-n}..{n - 1}, got {position}.")

    def moved(self, subspace: Float[Tensor, "dim k"] | None) -> Tensor:
        """Return the base states with the component of the source states."""
        if subspace is not None and len(subspace) != self.width:
            raise ShapeError(
                f"interchange: expected a subspace of {self.width} dimensions at {self.site}, got "
                f"{tuple(subspace.shape)}."
            )
        values = self.new if subspace is None else swapped(self.old, self.new, subspace, subspace)
        if self.position is None:
            return values
        at = torch.zeros(self.old.shape[1], 1, dtype=torch.bool, device=self.old.device)
        at[self.position] = True
        return torch.where(at, values, self.old)

    def loss(self, subspace: Float[Tensor, "dim k"]) -> Tensor:
        """Return the mean cross-entropy of the expected answers."""
        outputs = self.runs.going_on("clean", self.site, self.moved(subspace))
        return -self.runs.number("clean", outputs).mean()

    def right(self, values: Tensor) -> Float[Tensor, "pair"]:
        """Return which answers are the expected ones with these states."""
        outputs = self.runs.going_on("clean", self.site, values)
        best = self.runs.log_probs("clean", outputs).argmax(-1)
        return (best.cpu() == self.expected.cpu()).double()

    def alignment(
        self,
        subspace: Float[Tensor, "dim k"] | None,
        groups: RowGroups,
        seed: int,
        method: str,
        losses: tuple[float, ...] = (),
    ) -> Alignment:
        """Return the fraction of pairs that give the expected answer after the interchange."""
        null = None
        with torch.no_grad():
            own = self.right(self.moved(subspace))
            unpatched = float(self.right(self.old).mean())
            if subspace is not None:
                generator = torch.Generator().manual_seed(seed + 1)
                drawn = torch.randn(subspace.shape, generator=generator, dtype=torch.float64)
                null = float(self.right(self.moved(torch.linalg.qr(drawn)[0])).mean())
        result = Alignment(
            value=float(own.mean()),
            se=groups.error(own),
            null=null,
            n=len(groups),
            direction="higher",
            range=(0.0, 1.0),
            conventions={"method": method, "site": str(self.site), "se": "over groups of pairs"},
            subspace=subspace,
            unpatched=unpatched,
            losses=losses,
        )
        return groups.flagged(result)


def swapped(
    old: Float[Tensor, "*axes dim"],
    new: Float[Tensor, "*axes dim"],
    left: Float[Tensor, "dim k"],
    right: Float[Tensor, "dim k"],
) -> Float[Tensor, "*axes dim"]:
    """Return ``old + left right'(new - old)``."""
    return old + ((new - old) @ right.to(old)) @ left.to(old).T
