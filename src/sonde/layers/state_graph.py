"""Smoothing of states over a graph of neighbours, correlations, attention or learned edges."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import normalize

from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.layers.layer import Layer
from sonde.stats.soft_top_k import soft_top_k

SHARP = 10.0


@final
class StateGraph(Layer):
    """Mix the state of each node with its neighbours' states in a graph.

    ``Y <- alpha S Y + (1 - alpha) X`` for ``steps`` rounds, with ``S = D^-1/2 A D^-1/2`` and an
    ``alpha = tanh(strength)`` that starts at 0. The graph ``A`` joins each node with its ``k``
    nearest (``knn``), with those whose states correlate beyond ``threshold`` (``correlation``),
    with all nodes by self-attention ``softmax(Q K' / sqrt(dim))`` (``attention``), or by ``budget``
    edges that are learned for all rows (``learned``: the largest of a table of scores; in training
    with noise and soft weights, then exactly ``budget`` of them), or it is given with each call.
    With ``mapped`` neighbours send ``W y``, the weights of a graph convolution; ``W`` starts as 1.

    Cost         ``node^2 dim`` products for each row and round.
    Assumes      few nodes: every pair is compared.
    Differs      from the paper: learned edges pass states on, not queries and keys.

    Parameters
    ----------
    dim : int
        Width of the states.
    kind : {"knn", "correlation", "attention", "learned", "given"}, default="knn"
        Where the graph comes from: nearest neighbours, correlations, self-attention, learned edges,
        or each call.
    k : int, default=3
        Neighbours; two nodes are joined if either is among the ``k`` nearest of the other.
    threshold : float, default=0.5
        Least absolute correlation over the ``dim`` features.
    n : int, default=0
        Nodes of a learned graph.
    budget : int, default=0
        Directed edges of a learned graph, beside each node's own.
    steps : int, default=1
        Number of rounds.
    gated : bool, default=False
        Scale the messages that a node receives by a gate, which reads the node's state.
    mapped : bool, default=False
        Send states through a learned linear map, the same in each round.

    References
    ----------
    hu2024commformer, yang2022drag
    """

    paper: ClassVar[str] = "hu2024commformer"
    variants: ClassVar[Mapping[str, str]] = {
        "kind='learned', n=6, budget=4": "hu2024commformer",
        "kind='attention', mapped=True": "yang2022drag",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "k": 2, "steps": 3},
        {"dim": 4, "kind": "correlation", "threshold": 0.3, "gated": True},
        {"dim": 4, "kind": "attention", "mapped": True, "steps": 2},
        {"dim": 4, "kind": "learned", "n": 5, "budget": 6, "steps": 2},
    )
    layout: ClassVar[tuple[str, ...]] = ("row node dim",)

    def __init__(
        self,
        dim: int,
        kind: Literal["knn", "correlation", "attention", "learned", "given"] = "knn",
        k: int = 3,
        threshold: float = 0.5,
        n: int = 0,
        budget: int = 0,
        steps: int = 1,
        gated: bool = False,
        mapped: bool = False,
    ) -> None:
        super().__init__()
        if kind == "learned" and not 1 <= budget < n * (n - 1):
            raise InputError(
                f"StateGraph: expected a budget of 1 to {max(n * (n - 1) - 1, 0)} of the edges "
                f"among n={n} nodes, got {budget}."
            )
        self.dim, self.kind, self.k, self.threshold = dim, kind, k, threshold
        self.budget, self.steps = budget, steps
        check_ranges(self, k=">= 1", steps=">= 1")
        self.symmetry = "none" if kind in ("learned", "given") else "permutation"
        self.strength = nn.Parameter(torch.zeros(()))
        self.gate = nn.Linear(dim, 1) if gated else None
        self.map = nn.Linear(dim, dim, bias=False) if mapped else None
        if self.map is not None:
            nn.init.eye_(self.map.weight)
        ways = ("query", "key") if kind == "attention" else ()
        self.asks = nn.ModuleDict({name: nn.Linear(dim, dim) for name in ways})
        self.scores = nn.Parameter(0.01 * torch.randn(n, n)) if kind == "learned" else None
        if kind == "learned":
            self.node = n

    def forward(
        self,
        x: Float[Tensor, "row node dim"],
        mask: Bool[Tensor, "row node"] | None = None,
        adjacency: Float[Tensor, "*row node node"] | None = None,
    ) -> Float[Tensor, "row node dim"]:
        """Return the smoothed states.

        Parameters
        ----------
        x : Float[Tensor, "row node dim"]
        mask : Bool[Tensor, "row node"], optional
            True for real nodes; other nodes neither send nor receive.
        adjacency : Float[Tensor, "*row node node"], optional
            Weights of 0 or more, for ``kind="given"``: row i holds what node i receives.
        """
        if (adjacency is not None) != (self.kind == "given"):
            raise InputError(
                "StateGraph: expected an adjacency with kind='given', and no adjacency with "
                "another kind."
            )
        edges = self.edges(x, mask) if adjacency is None else adjacency
        if mask is not None:
            edges = edges * (mask.unsqueeze(-1) & mask.unsqueeze(-2))
        alpha = self.strength.tanh()
        if self.gate is not None:
            alpha = alpha * self.gate(x).sigmoid()
        y, smooth = x, normalised(edges)
        for _ in range(self.steps):
            y = alpha * (smooth @ self._sent(y)) + (1 - alpha) * x
        return y

    def _sent(self, y: Tensor) -> Tensor:
        """Return what nodes send to their neighbours."""
        return y if self.map is None else self.map(y)

    def edges(
        self, x: Float[Tensor, "row node dim"], mask: Bool[Tensor, "row node"] | None = None
    ) -> Float[Tensor, "*row node node"]:
        """Return the graph over each row's nodes; learned edges and attention have a gradient.

        Parameters
        ----------
        x : Float[Tensor, "row node dim"]
        mask : Bool[Tensor, "row node"], optional
            True for real nodes.
        """
        if self.scores is not None:
            return self._learned(self.scores).to(x)
        if self.kind == "attention":
            wide = torch.promote_types(x.dtype, torch.float32)  # products leave float16's range
            query, key = (
                functional.linear(x.to(wide), m.weight.to(wide), m.bias.to(wide))
                for m in cast("list[nn.Linear]", [self.asks["query"], self.asks["key"]])
            )
            scores = query @ key.transpose(1, 2) / self.dim**0.5
            if mask is not None:
                scores = scores.masked_fill(~mask.unsqueeze(1), torch.finfo(scores.dtype).min)
            return scores.softmax(-1).to(x)
        given, x = x, x.detach().to(torch.promote_types(x.dtype, torch.float32))
        own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        if self.kind == "correlation":
            z = normalize(x - x.mean(-1, keepdim=True), dim=-1)
            near = (z @ z.transpose(1, 2)).abs() >= self.threshold
            return (near & ~own).to(given)
        far = torch.cdist(x, x).masked_fill(own, torch.inf)
        if mask is not None:
            far = far.masked_fill(~mask.unsqueeze(1), torch.inf)
        near = far.topk(min(self.k, x.shape[1] - 1), largest=False)
        chosen = torch.zeros_like(far).scatter(2, near.indices, near.values.isfinite().to(far))
        return torch.maximum(chosen, chosen.transpose(1, 2)).to(given)

    def _learned(self, scores: Tensor) -> Tensor:
        """Return the weights of the learned edges, with self-loops."""
        n = len(scores)
        own = torch.eye(n, dtype=torch.bool, device=scores.device)
        flat = scores.masked_fill(own, -torch.inf).flatten()
        if self.training:
            noise = -(-torch.rand_like(flat).clamp(min=1e-9).log()).log()  # Gumbel's
            chosen = soft_top_k((flat + noise).unsqueeze(0), self.budget, SHARP)[0]
        else:
            chosen = torch.zeros_like(flat).index_fill(0, flat.topk(self.budget).indices, 1.0)
        return chosen.reshape(n, n) + own.to(scores)

    @torch.no_grad()
    def influence(self, x: Float[Tensor, "row node dim"]) -> Float[Tensor, "node node"]:
        """Return how much node i changes without node j's messages, averaged over rows.

        Parameters
        ----------
        x : Float[Tensor, "row node dim"]
        """
        n, edges = x.shape[1], self.edges(x).expand(len(x), -1, -1)
        alpha, smooth = self.strength.tanh(), normalised(edges)
        if self.gate is not None:
            alpha = alpha * self.gate(x).sigmoid()

        def told(silent: int | None) -> Tensor:
            y = x
            for _ in range(self.steps):
                sent = self._sent(y)
                if silent is not None:
                    sent = sent.index_fill(1, torch.tensor([silent], device=x.device), 0.0)
                y = alpha * (smooth @ sent) + (1 - alpha) * x
            return y

        whole = told(None)
        return torch.stack([(told(j) - whole).norm(dim=-1).mean(0) for j in range(n)], 1)


def normalised(adjacency: Float[Tensor, "*row node node"]) -> Float[Tensor, "*row node node"]:
    """Return ``D^-1/2 A D^-1/2``; a node without edges keeps a row of zeros.

    Examples
    --------
    >>> normalised(torch.tensor([[0.0, 4.0], [4.0, 0.0]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    scale = [adjacency.sum(axis).clamp(min=0) for axis in (-1, -2)]
    rows, columns = (torch.where(s > 0, s, 1.0).rsqrt() * (s > 0) for s in scale)
    return cast(Tensor, rows.unsqueeze(-1) * adjacency * columns.unsqueeze(-2))


def propagate(
    y: Float[Tensor, "node *axes"],
    adjacency: Float[Tensor, "node node"],
    alpha: float = 0.8,
    steps: int | None = None,
) -> Float[Tensor, "node *axes"]:
    """Spread labels or states over a graph: ``Y <- alpha S Y + (1 - alpha) Y0``.

    Parameters
    ----------
    y : Float[Tensor, "node *axes"]
        Labels or states to start from; zero where they are not known.
    adjacency : Float[Tensor, "node node"]
        Symmetric weights of 0 or more.
    alpha : float, default=0.8
        In [0, 1): how far labels travel.
    steps : int, optional
        Rounds; by default the limit, by solving ``(I - alpha S) Y = (1 - alpha) Y0``.

    Raises
    ------
    InputError
        If alpha is outside [0, 1).

    Examples
    --------
    >>> path = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).double()
    >>> ends = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]).double()
    >>> propagate(ends, path, 0.5)[0].round(decimals=6).tolist()
    [0.583333, 0.083333]
    """
    if not 0 <= alpha < 1:
        raise InputError(f"propagate: expected alpha in [0, 1), got {alpha}.")
    smooth, flat = normalised(adjacency), y.flatten(1) if y.ndim > 1 else y.unsqueeze(1)
    if steps is None:
        whole = torch.eye(len(y), dtype=smooth.dtype, device=y.device) - alpha * smooth
        return torch.linalg.solve(whole, (1 - alpha) * flat).reshape(y.shape)
    spread = flat
    for _ in range(steps):
        spread = alpha * (smooth @ spread) + (1 - alpha) * flat
    return spread.reshape(y.shape)
