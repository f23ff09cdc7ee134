"""The smallest set of residual-stream edges that distinguishes two inputs, and its test."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.explainer import Explainer
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.engine.progress import Bar
from sonde.explain._residual_graph import ResidualGraph
from sonde.explain._runs import Goal, States, TwoRuns
from sonde.explain.edges import Edge, EdgeAttribution
from sonde.explain.patching import mean_share

RANDOM = 8
"""Random circuits of the same size, beside the one that was found."""


@final
@dataclass(frozen=True, kw_only=True)
class Circuit(Result):
    """Edges of a circuit, and the effect that remains with only these edges.

    ``value`` is the faithfulness: with every edge outside corrupted, the share of the difference
    between the clean and the corrupted run that is left; 1 all, 0 nothing, mean over pairs.
    ``null`` is the faithfulness of as many random edges. ``complement`` is the share that is left
    without the circuit: near 0 if the circuit is complete. ``needed`` is what the faithfulness
    loses without each edge. ``sizes`` and ``curve`` are the sizes that were tried and their
    faithfulness; ``scores`` are the scores that ``all_edges`` were ranked by.
    """

    title: ClassVar[str] = "Faithfulness of the circuit"
    edges: tuple[Edge, ...]
    all_edges: tuple[Edge, ...]
    complement: float
    needed: Float[Tensor, "edge"]
    sizes: tuple[int, ...]
    curve: Float[Tensor, "size"]
    scores: Float[Tensor, "all_edge"] | None = None
    n_dropped: int = 0


@final
@dataclass(frozen=True)
class CircuitSearch(Explainer):
    """Smallest set of edges that keeps most of the difference between two runs.

    ``score`` ranks edges by ``EdgeAttribution`` and takes as few of the best as are faithful
    ``enough``. ``greedy`` goes through readers from the last to the first and leaves an edge out if
    the answer's distribution moves by less than ``tau``.

    Range        share of the difference, around [0, 1]; 1 = faithful; mean over pairs of each
                 pair's share.
    Cost         ``score``: the estimates and some 30 forwards; ``greedy``: one for each edge.
    Assumes      a stream that is a sum of layers' outputs. Edges into one module are one edge, at
                 all positions: queries, keys and values are apart where layers of their own read.

    Parameters
    ----------
    how : {"score", "greedy"}, default="score"
        Take the best-scored edges (``score``), or leave edges out one by one (``greedy``).
    enough : float, default=0.9
        Faithfulness at which ``score`` stops; all edges if no size reaches it.
    tau : float, default=0.02
        Largest rise of the divergence from the clean run, in nats, for which ``greedy`` leaves an
        edge out.
    ig_steps : int, default=5
        Number of steps from one run to the other over which the estimates' gradients are averaged.
    tol : float, default=1e-6
        Smallest difference of the two runs' objectives that counts as one.
    rows : int, default=64
        Number of examples that run at once.
    seed : int, default=0
        Seed of the random circuits that are compared.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> found = CircuitSearch().explain(net, torch.ones(1, 2), corrupt=torch.zeros(1, 2))
    >>> found.edges, round(found.value, 3)
    ((('0:out', '1:in'),), 1.0)

    References
    ----------
    conmy2023acdc
    syed2023edges
    """

    how: Literal["score", "greedy"] = "score"
    enough: float = 0.9
    tau: float = 0.02
    ig_steps: int = 5
    tol: float = 1e-6
    rows: int = 64
    seed: int = 0
    paper: ClassVar[str] = "conmy2023acdc"

    def __post_init__(self) -> None:
        check_ranges(self, how=("score", "greedy"), tau=">= 0", ig_steps=">= 1")

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        corrupt: Any,
        objective: Goal | None = None,
        progress: bool = False,
    ) -> Circuit:
        """Return the circuit. The arguments are those of ``EdgePatching.explain``."""
        runs = TwoRuns(model, inputs, corrupt, objective)
        return self.between(runs, progress=progress)

    def between(self, runs: TwoRuns, *, progress: bool = False) -> Circuit:
        """Return the circuit of two runs that are already open."""
        graph = ResidualGraph.of(runs)
        high, _ = runs.states("clean", [])
        low, other = runs.states("corrupt", graph.writers)
        judge = _Judge(runs, graph, other, low, high, self)
        n = len(graph.edges)
        scores: Tensor | None = None
        if self.how == "score":
            steps = self.ig_steps
            scores = EdgeAttribution("noise", steps, self.tol).between(runs, graph).value
            order = scores.abs().argsort(descending=True, stable=True)
            sizes = _sizes(n)
            grid = torch.zeros(len(sizes), n, dtype=torch.bool)
            for row, size in zip(grid, sizes, strict=True):
                row[order[:size]] = True
            curve = judge.faithfulness(grid)
            good = (curve >= self.enough).nonzero().flatten()
            kept = grid[int(good[0]) if len(good) else -1]
            kept, sizes, curve = _shrunk(judge, order, kept, sizes, curve, self.enough)
        else:
            kept = self._greedy(runs, graph, other, progress)
            sizes, curve = (int(kept.sum()),), judge.faithfulness(kept[None])
        return self._judged(runs, graph, judge, kept, sizes, curve, scores)

    def _judged(
        self,
        runs: TwoRuns,
        graph: ResidualGraph,
        judge: "_Judge",
        kept: Bool[Tensor, "edge"],
        sizes: tuple[int, ...],
        curve: Float[Tensor, "size"],
        scores: Tensor | None,
    ) -> Circuit:
        members = kept.nonzero().flatten()
        generator = torch.Generator().manual_seed(self.seed)
        draws = [
            torch.randperm(len(kept), generator=generator)[: len(members)] for _ in range(RANDOM)
        ]
        cases = torch.zeros(2 + RANDOM + len(members), len(kept), dtype=torch.bool)
        cases[0], cases[1] = kept, ~kept
        for i, drawn in enumerate(draws):
            cases[2 + i, drawn] = True
        for i, edge in enumerate(members.tolist()):
            cases[2 + RANDOM + i] = kept
            cases[2 + RANDOM + i, edge] = False
        faithful = judge.faithfulness(cases)
        own, names = faithful[0], graph.names
        return Circuit(
            value=float(own),
            null=float(faithful[2 : 2 + RANDOM].mean()),
            n=int(judge.kept.sum()),
            direction="higher",
            flags=() if bool(own.isfinite()) else ("dead",),
            conventions={
                "method": repr(self),
                "objective": runs.objective.name,
                "average": "mean over pairs of each pair's fraction",
                "se": "none: the circuit was chosen on these pairs",
            },
            edges=tuple(names[i] for i in members.tolist()),
            all_edges=names,
            complement=float(faithful[1]),
            needed=own - faithful[2 + RANDOM :],
            sizes=sizes,
            curve=curve,
            scores=scores,
            n_dropped=int((~judge.kept).sum()),
        )

    def _greedy(
        self, runs: TwoRuns, graph: ResidualGraph, other: States, progress: bool
    ) -> Bool[Tensor, "edge"]:
        gone = torch.zeros(len(graph.edges), dtype=torch.bool)
        whole = runs.log_probs("clean", runs.acting("clean", [], lambda *_: None))
        now = 0.0
        order = sorted(range(len(gone)), key=lambda e: (-graph.edges[e][1], -graph.edges[e][0]))
        with Bar("search", len(order), shown=progress) as bar:
            for edge in order:
                gone[edge] = True
                outputs = graph.outputs(runs, "clean", other, gone[None])
                log_q = runs.log_probs("clean", outputs)
                moved = float((whole.exp() * (whole - log_q)).sum(-1).mean())
                if moved - now < self.tau:
                    now = moved
                else:
                    gone[edge] = False
                bar.advance(1)
        return ~gone


@dataclass(frozen=True, eq=False)
class _Judge:
    """Computes the fraction of the difference that a set of edges keeps."""

    runs: TwoRuns
    graph: ResidualGraph
    other: States
    low: Float[Tensor, "pair"]
    high: Float[Tensor, "pair"]
    search: CircuitSearch

    @property
    def kept(self) -> Bool[Tensor, "pair"]:
        return (self.high - self.low).abs().cpu() >= self.search.tol

    def faithfulness(self, circuits: Bool[Tensor, "case edge"]) -> Float[Tensor, "case"]:
        numbers = self.graph.numbers(self.runs, "clean", self.other, ~circuits, self.search.rows)
        rises = (numbers - self.low).double().cpu().T
        return mean_share(rises, (self.high - self.low).double().cpu(), self.search.tol)[0]


def _sizes(n: int) -> tuple[int, ...]:
    """Return about twenty sizes up to n, denser at small sizes."""
    counts, size = {0, n}, 1.0
    while size < n:
        counts.add(round(size))
        size *= 1.5
    return tuple(sorted(counts))


def _shrunk(
    judge: _Judge,
    order: Tensor,
    kept: Bool[Tensor, "edge"],
    sizes: tuple[int, ...],
    curve: Float[Tensor, "size"],
    enough: float,
) -> tuple[Bool[Tensor, "edge"], tuple[int, ...], Float[Tensor, "_tried"]]:
    """Return the smallest circuit between two sizes of the grid, and all tested circuits."""
    high = int(kept.sum())
    low = max([s for s in sizes if s < high], default=0)
    between = list(range(low + 1, high))[:64]
    if not between:
        return kept, sizes, curve
    grid = torch.zeros(len(between), len(kept), dtype=torch.bool)
    for row, size in zip(grid, between, strict=True):
        row[order[:size]] = True
    scores = judge.faithfulness(grid)
    good = (scores >= enough).nonzero().flatten()
    ranked = sorted(
        [*zip(sizes, curve.tolist(), strict=True), *zip(between, scores.tolist(), strict=True)]
    )
    tried = torch.tensor([value for _, value in ranked], dtype=torch.float64)
    return (grid[int(good[0])] if len(good) else kept), tuple(s for s, _ in ranked), tried
