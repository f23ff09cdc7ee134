"""Effects of the edges of a residual stream on the difference between two inputs.

An edge goes from a layer that writes into the stream to a module that reads it. ``EdgePatching``
runs the model for each; ``EdgeAttribution`` estimates all of them from a few backwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.explainer import Explainer
from sonde.core.inputs import Model
from sonde.core.result import Result
from sonde.engine.progress import Bar
from sonde.explain._residual_graph import ResidualGraph
from sonde.explain._runs import Goal, TwoRuns
from sonde.explain.patching import SIDES, Direction, mean_gradients, mean_share

Edge = tuple[str, str]


@final
@dataclass(frozen=True, kw_only=True)
class EdgeEffects(Result):
    """Effect of each edge on the number that distinguishes two runs.

    ``value`` is the share of the difference that an edge brings, mean over pairs. ``edges`` are
    names of a writer's output and a reader's input; ``effects``, ``base``, ``source`` and
    ``n_dropped`` are as of ``PatchEffects``.
    """

    title: ClassVar[str] = "Fraction of the difference between the two runs that each edge restores"
    value: Float[Tensor, "edge"]  # pyright: ignore[reportGeneralTypeIssues]
    effects: Float[Tensor, "pair edge"]
    base: Float[Tensor, "pair"]
    source: Float[Tensor, "pair"]
    edges: tuple[Edge, ...]
    n_dropped: int = 0

    def best(self, n: int = 5) -> list[tuple[str, str, float]]:
        """Return the edges with the largest fractions, as (writer, reader, fraction)."""
        order = self.value.abs().nan_to_num(-torch.inf).argsort(descending=True)[:n].tolist()
        return [(*self.edges[i], float(self.value[i])) for i in order]


@final
@dataclass(frozen=True)
class EdgePatching(Explainer):
    """Fraction of the difference that a layer's output carries to a single reader.

    The reader takes in ``x + (u_source - u_base)``; every other module, the later readers of the
    same writer too, sees the patched run's own stream.

    Range        share of the difference, around [0, 1]; not clamped.
    Cost         two forwards, and one example of a forward for each edge.
    Assumes      a stream that is a sum of layers' outputs (no norm on it).

    Parameters
    ----------
    how : {"denoise", "noise"}, default="denoise"
        Which run is patched, as in ``ActivationPatching``: states of the source come into the base
        run (``denoise``), or the reverse (``noise``).
    tol : float, default=1e-6
        Smallest difference of the two runs' objectives that counts as one.
    rows : int, default=64
        Examples of one forward.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> EdgePatching().explain(net, torch.ones(1, 2), corrupt=torch.zeros(1, 2)).edges
    (('0:out', '1:in'),)

    References
    ----------
    goldowskydill2023paths
    """

    how: Direction = "denoise"
    tol: float = 1e-6
    rows: int = 64
    paper: ClassVar[str] = "goldowskydill2023paths"

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        corrupt: Any,
        objective: Goal | None = None,
        progress: bool = False,
    ) -> EdgeEffects:
        """Return the effect of each edge. Arguments are those of ``ActivationPatching.explain``.

        Raises
        ------
        StateError
            If nothing reads a sum of layers' outputs.
        """
        runs = TwoRuns(model, inputs, corrupt, objective)
        return self.between(runs, ResidualGraph.of(runs), progress=progress)

    def between(
        self, runs: TwoRuns, graph: ResidualGraph, *, progress: bool = False
    ) -> EdgeEffects:
        """Return the effect of each edge in two runs that are already open."""
        base_side, source_side = SIDES[self.how]
        base, _ = runs.states(base_side, [])
        source, other = runs.states(source_side, graph.writers)
        each = torch.eye(len(graph.edges), dtype=torch.bool)
        with Bar("patch edges", len(graph.edges), shown=progress) as bar:
            numbers = graph.numbers(runs, base_side, other, each, self.rows, bar)
        effects = (numbers - base).T.double().cpu()
        return edge_effects(self, runs, graph, effects, (base, source), self.tol)


@final
@dataclass(frozen=True)
class EdgeAttribution(Explainer):
    """First-order estimate of every edge's effect: writer's difference times reader's gradient.

    ``(u_source - u_base) . dm/d in_v``: one backward for all edges, or one for each step.

    Range        share of the difference; ``effects`` in units of the objective.
    Cost         two forwards, and ``ig_steps`` forwards and backwards.
    Assumes      as of ``EdgePatching``, and little curvature between the runs.

    Parameters
    ----------
    how : {"denoise", "noise"}, default="denoise"
        Which run is patched: states of the source come into the base run (``denoise``), or the
        reverse (``noise``).
    ig_steps : int, default=5
        1 is the gradient of the patched run alone; else the mean over Gauss-Legendre nodes while
        the inputs (embeddings) go from base to source.
    tol : float, default=1e-6
        Smallest difference of the two runs' objectives that counts as one.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> found = EdgeAttribution().explain(net, torch.ones(1, 2), corrupt=torch.zeros(1, 2))
    >>> round(float(found.value), 4)
    1.0

    References
    ----------
    syed2023edges
    hanna2024faith
    """

    how: Direction = "denoise"
    ig_steps: int = 5
    tol: float = 1e-6
    paper: ClassVar[str] = "syed2023edges"

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        corrupt: Any,
        objective: Goal | None = None,
    ) -> EdgeEffects:
        """Return the estimated effect of each edge. Arguments: see ``EdgePatching.explain``."""
        runs = TwoRuns(model, inputs, corrupt, objective)
        return self.between(runs, ResidualGraph.of(runs))

    def between(self, runs: TwoRuns, graph: ResidualGraph) -> EdgeEffects:
        """Return the estimated effect of each edge in two runs that are already open."""
        base_side, source_side = SIDES[self.how]
        source, new = runs.states(source_side, graph.writers)
        base, old = runs.states(base_side, graph.writers)
        if self.ig_steps == 1:
            _, _, slopes = runs.gradients(base_side, graph.readers)
        else:
            slopes = mean_gradients(runs, graph.readers, self.how, self.ig_steps)
        parts: list[Tensor] = []
        for u, v in graph.edges:
            product = slopes[graph.readers[v]] * (new[graph.writers[u]] - old[graph.writers[u]])
            parts.append(product.flatten(1).sum(1).unflatten(0, (len(base), -1)).sum(1))
        effects = torch.stack(parts, 1).double().cpu()
        return edge_effects(self, runs, graph, effects, (base, source), self.tol)


def edge_effects(
    method: Any,
    runs: TwoRuns,
    graph: ResidualGraph,
    effects: Float[Tensor, "pair edge"],
    ends: tuple[Float[Tensor, "pair"], Float[Tensor, "pair"]],
    tol: float,
) -> EdgeEffects:
    """Return the fraction of each edge, averaged over the pairs that differ."""
    base, source = (x.double().cpu() for x in ends)
    mean, se, kept = mean_share(effects, source - base, tol)
    return EdgeEffects(
        value=mean,
        se=se,
        n=int(kept.sum()),
        direction="higher",
        flags=() if bool(mean.isfinite().all()) else ("dead",),
        conventions={
            "method": repr(method),
            "objective": runs.objective.name,
            "average": "mean over pairs of each pair's fraction",
        },
        effects=effects,
        base=base,
        source=source,
        edges=graph.names,
        n_dropped=int((~kept).sum()),
    )


def named(edges: Sequence[Edge]) -> list[str]:
    """Return readable names of edges."""
    return [f"{u.removesuffix(':out')} -> {v.removesuffix(':in')}" for u, v in edges]
