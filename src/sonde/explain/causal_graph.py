"""Which units a class is made of, layer by layer: what each unit sends to the next, taken away.

For chains of linear layers with element-wise functions between them (an MLP head, the layers behind
a pooled convolutional net). Of a transformer's residual stream take ``CircuitSearch``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.core.result import Result
from sonde.core.site import Site
from sonde.engine.progress import Bar
from sonde.explain._runs import TwoRuns
from sonde.explain.objective import Objective

Unit = tuple[str, int]
ROWS = 4096


@final
@dataclass(frozen=True, kw_only=True)
class CausalEdges(Result):
    """The units that a class is made of, and over which ways.

    ``value`` is the mean effect of each edge: how much the class's logit falls when what the parent
    sends to the child is replaced by its baseline. ``edges`` are (layer, unit) of parent and child;
    the child of the last layer's edges is the class. ``sums``, ``squares`` and ``n`` are the state:
    of two disjoint halves they add up. ``screened`` edges were not intervened on, their first-order
    effect being far below the threshold.
    """

    title: ClassVar[str] = "Mean effect of each edge of the graph"
    value: Float[Tensor, "edge"]  # pyright: ignore[reportGeneralTypeIssues]
    edges: tuple[tuple[Unit, Unit], ...]
    sums: Float[Tensor, "edge"]
    squares: Float[Tensor, "edge"]
    thresholds: tuple[float, ...]
    necessity: float
    sufficiency: float
    random_necessity: float
    screened: int = 0

    @property
    def units(self) -> set[Unit]:
        """The units in the graph, the class apart."""
        return {parent for parent, _ in self.edges}


@final
@dataclass(frozen=True)
class CausalGraph:
    """Graph of the units whose messages raise a class, found from the answer backwards.

    The message of unit j to unit i of the next layer is ``w_ij a_j``. Its path intervention takes
    ``w_ij (a_j - baseline_j)`` from i's pre-activation, leaves all other messages of j alone, and
    runs on; the mean fall of the logit is the edge's effect. Parents of the class with an effect
    of at least ``threshold`` are kept, and the same is asked of them.

    Range        mean fall of the logit; larger = more of the class; negative = held back.
    Cost         a forward of what lies behind for each edge of a kept child, or, with ``screen``,
                 for those that the gradient does not rule out.
    Assumes      layers that are linear with functions of single units between them. Redundant
                 units hide one another: each alone may be taken away. ``together`` takes them away
                 in groups of equal activations.
    Differs      the abstract gives no formulas: the definition is ours.

    Parameters
    ----------
    threshold : float or None, default=None
        Effect from which an edge is kept; None is the quantile ``quantile`` of the absolute effects
        of each layer, and never 0.
    quantile : float, default=0.9
    baseline : {"mean", "zero"}, default="mean"
        What a unit sends instead: its mean over the rows, or nothing.
    screen : float, default=0.0
        Edges are intervened on where the first-order effect is at least this share of the largest.
    together : bool, default=False
        Take units with the same activations away together.
    seed : int, default=0
        Of the random units beside the graph's.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> net[0].weight.data, net[2].weight.data = torch.eye(2), torch.tensor([[1.0, 0.0]])
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    >>> graph = CausalGraph(threshold=0.1, baseline="zero")
    >>> graph.find(net, x, ["0", "2"], target=0).edges[0]
    (('0', 0), ('class', 0))

    References
    ----------
    pathinterventions
    """

    threshold: float | None = None
    quantile: float = 0.9
    baseline: Literal["mean", "zero"] = "mean"
    screen: float = 0.0
    together: bool = False
    seed: int = 0
    paper: ClassVar[str] = "pathinterventions"

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1 or not 0 <= self.screen < 1:
            raise InputError(
                "CausalGraph: expected quantile and screen in [0, 1), got "
                f"{self.quantile} and {self.screen}."
            )

    def find(
        self,
        model: Model | nn.Module,
        x: Any,
        layers: Sequence[str],
        target: int,
        *,
        progress: bool = False,
    ) -> CausalEdges:
        """Return the graph of one class.

        Parameters
        ----------
        model : Model or nn.Module
        x : Tensor, tuple or dict
            Inputs of the class.
        layers : sequence of str
            Linear layers in order, from the first whose inputs are asked about; the last one gives
            the logits.
        target : int
            The class.

        Raises
        ------
        SiteError
            If a name is no linear layer, or one does not take what the one before gave.
        """
        net = _Net(model, x, layers, target, self.baseline)
        children = torch.tensor([target])
        edges: list[tuple[Unit, Unit]] = []
        rows: list[Tensor] = []
        thresholds: list[float] = []
        screened = 0
        with Bar("causal graph", len(layers) - 1, shown=progress) as bar:
            for level in reversed(range(1, len(layers))):
                effects, skipped = net.effects(level, children, self.screen, self.together)
                mean = effects.mean(2)
                least = self._least(mean)
                strong = (mean.abs() >= least) & (mean != 0)
                thresholds.append(least)
                screened += skipped
                last = level == len(layers) - 1
                for i, j in strong.nonzero().tolist():
                    child = ("class", target) if last else (layers[level], int(children[i]))
                    edges.append(((layers[level - 1], j), child))
                    rows.append(effects[i, j])
                children = strong.any(0).nonzero().flatten()
                bar.advance(1)
                if not len(children):
                    break
        return self._judged(net, edges, rows, tuple(thresholds), screened)

    def _least(self, mean: Float[Tensor, "child parent"]) -> float:
        if self.threshold is not None:
            return self.threshold
        return float(torch.quantile(mean.abs().flatten(), self.quantile))

    def _judged(
        self,
        net: "_Net",
        edges: list[tuple[Unit, Unit]],
        rows: list[Tensor],
        thresholds: tuple[float, ...],
        screened: int,
    ) -> CausalEdges:
        effects = torch.stack(rows) if rows else torch.zeros(0, net.n, dtype=torch.float64)
        chosen = {parent for parent, _ in edges}
        generator = torch.Generator().manual_seed(self.seed)
        n, mean = net.n, effects.mean(1)
        spread = effects.var(1) if n > 1 else torch.full_like(mean, torch.nan)
        return CausalEdges(
            value=mean,
            se=(spread / n).sqrt() if n > 1 else None,
            n=n,
            unit="logit",
            direction="higher",
            conventions={"method": repr(self), "objective": f"logit[{net.target}]"},
            edges=tuple(edges),
            sums=effects.sum(1),
            squares=effects.square().sum(1),
            thresholds=thresholds,
            necessity=net.accuracy(chosen, without=True),
            sufficiency=net.accuracy(chosen, without=False),
            random_necessity=net.accuracy(net.drawn(chosen, generator), without=True),
            screened=screened,
        )


class _Net:
    """A chain of linear layers, and what its answers become when messages are taken away."""

    def __init__(
        self,
        model: Model | nn.Module,
        x: Any,
        layers: Sequence[str],
        target: int,
        baseline: str,
    ) -> None:
        self.runs = TwoRuns(model, x, x, Objective(target=target))
        named = [self.runs.module.get_submodule(name) for name in layers]
        modules = [m for m in named if isinstance(m, nn.Linear)]
        if len(layers) < 2 or len(modules) < len(named):
            kinds = [type(m).__name__ for m in named]
            raise SiteError(f"CausalGraph: expected two linear layers or more, got {kinds}.")
        for (a, before), (b, after) in pairwise(zip(layers, modules, strict=True)):
            if before.out_features != after.in_features:
                raise SiteError(
                    f"CausalGraph: expected {b} to take the {before.out_features} units of {a}, "
                    f"got {after.in_features}. Name layers that follow one another."
                )
        self.weights: list[Tensor] = [m.weight.detach() for m in modules]
        self.layers, self.target = layers, target
        takes = [Site(name, port="in") for name in layers]
        gives = [Site(name) for name in layers]
        self.whole, seen = self.runs.states("clean", [*takes, *gives])
        self.n = len(self.whole)
        self.sent = [seen[site] for site in takes]
        self.pre = [seen[site] for site in gives]
        if any(state.ndim != 2 for state in self.sent):
            raise SiteError("CausalGraph: expected layers that read rows (row, unit).")
        zero = baseline == "zero"
        self.rest = [torch.zeros_like(a[0]) if zero else a.mean(0) for a in self.sent]

    def effects(
        self, level: int, children: Int[Tensor, "child"], screen: float, together: bool
    ) -> tuple[Float[Tensor, "child parent row"], int]:
        """Return how much the logit falls without each message into some units of a layer."""
        weight, moves = self.weights[level][children], self.sent[level] - self.rest[level]
        n_parents = weight.shape[1]
        groups = _groups(self.sent[level]) if together else torch.eye(n_parents, dtype=torch.bool)
        site = Site(self.layers[level])
        _, _, slopes = self.runs.gradients("clean", [site])
        slope = slopes[site][:, children]
        found = torch.zeros(len(children), n_parents, self.n, dtype=torch.float64)
        # Message of each group of parents to each child: (child, parent, row).
        message = torch.einsum("cp,gp,rp->cgr", weight, groups.to(weight), moves)
        first = (message * slope.T[:, None]).mean(2).abs()
        todo = (first >= screen * first.max()).nonzero() if screen else _all(first)
        size = max(1, ROWS // self.n)
        for part in todo.split(size):
            states = self.pre[level].repeat(len(part), 1, 1)
            at = torch.arange(len(part))
            states[at, :, children[part[:, 0]]] -= message[part[:, 0], part[:, 1]]
            numbers = self.runs.patched("clean", site, states.flatten(0, 1))
            fall = (self.whole - numbers).double().cpu()
            found[part[:, 0], part[:, 1]] = fall
        return found, len(first.flatten()) - len(todo)

    def accuracy(self, units: set[Unit], *, without: bool) -> float:
        """Return the share of rows that keep the class with units, or all others, at baseline."""

        def act(site: Site, leaf: Tensor) -> Tensor:
            level = self.layers.index(site.path)
            mine = [j for name, j in units if name == self.layers[level - 1]]
            off = torch.zeros(leaf.shape[1], dtype=torch.bool)
            off[mine] = True
            return torch.where(off if without else ~off, self.rest[level].to(leaf), leaf)

        sites = [Site(name, port="in") for name in self.layers[1:]]
        outputs = self.runs.acting("clean", sites, act)
        best = self.runs.log_probs("clean", outputs).argmax(-1)
        return float((best == self.target).double().mean())

    def drawn(self, units: set[Unit], generator: torch.Generator) -> set[Unit]:
        """Return as many random units of each layer."""
        found: set[Unit] = set()
        for level, name in enumerate(self.layers[:-1]):
            n = sum(layer == name for layer, _ in units)
            order = torch.randperm(self.sent[level + 1].shape[1], generator=generator)
            found |= {(name, j) for j in order[:n].tolist()}
        return found


def _groups(sent: Float[Tensor, "row parent"]) -> Bool[Tensor, "parent parent"]:
    """Return for each unit those with the same activations."""
    scale = sent.abs().max().clamp(min=1e-300)
    return torch.cdist(sent.T.double(), sent.T.double(), p=float("inf")) <= 1e-6 * scale


def _all(like: Float[Tensor, "child parent"]) -> Int[Tensor, "edge 2"]:
    return torch.ones_like(like).nonzero()
