"""Learned communication graphs at a budget, against full, random and empty graphs.

Simulated: some nodes carry what others have to say.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.layers import StateGraph
from sonde.train import Scope
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

NODES, DIM, BUDGET, ROWS, STEPS, TINY = 6, 6, 4, 800, 500, 15


@final
class LearnedGraphStudy(Study):
    """Six nodes; two have the information that four must output."""

    name = "learned-graph"
    title = "do learned edges find the nodes that know?"
    paper = "hu2024commformer"
    fidelity = (
        "one layer; on two levels the weights are not trained anew for each move of the edges; no "
        "agents that act"
    )
    data = "simulated: nodes of random states, four of which are asked for those of two others"
    claims = (
        Claim("random", "Learned edges err less than as many random ones.",
              "R^2 of learned edges (a tenth more parameters) less that of random edges",
              arms=("learned", "random")),
        Claim("full", "They err no more than all edges with learned weights do, to 0.02.",
              "R^2 of learned edges less that of all edges with weights, and 0.02",
              arms=("learned", "weighted")),
        Claim("levels", "Learned on two levels, edges on rows of their own and weights on the "
              "others, they err less than together, at as many updates in all.",
              "R^2 of edges and weights in turn, each on half of the rows, less together on all",
              arms=("two levels", "together")),
        Claim("levels twice", "They do with twice the updates, so that each parameter moves as "
              "often.",
              "R^2 of edges and weights in turn, each on half of the rows, less together on all",
              arms=("two levels, as often", "together")),
        Claim("found", "Most learned edges come from the nodes that know.",
              "share of learned edges that come from these, less 0.5"),
    )  # fmt: skip
    null = Claim("nothing", "Where nobody has to hear anybody, edges come from anywhere.",
                 "share of edges from the two nodes", above=1 / 3)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train with each graph."""
        found: dict[str, float] = {}
        steps, share = TINY if tiny else STEPS, 0.0
        for arm in ("learned", "random", "weighted", "all", "none"):
            tick(arm)
            found[arm], edges = _fitted(arm, seed, steps, True)
            share = edges if arm == "learned" else share
        tick("two levels")
        levels = two_levels(seed, tiny)
        nothing = _fitted("learned", seed, steps, False)[1]
        return {
            "random": found["learned"] - found["random"],
            "full": found["learned"] - found["weighted"] + 0.02,
            **levels,
            "found": share - 0.5,
            "nothing": nothing,
            **{f"R^2 | {arm}": v for arm, v in found.items()},
        }


def two_levels(seed: int, tiny: bool) -> dict[str, float]:
    """Return R^2 of edges and weights that are learned together and on two levels."""
    steps, r2, share = TINY if tiny else STEPS, dict[str, float](), dict[str, float]()
    for arm, n in (("together", 0), ("two levels", steps), ("two levels, as often", 2 * steps)):
        with part(arm):
            r2[arm], share[arm] = _fitted("learned", seed, steps, True, n)
    return {
        "levels": r2["two levels"] - r2["together"],
        "levels twice": r2["two levels, as often"] - r2["together"],
        **{f"R^2 | {arm}": v for arm, v in r2.items()},
        **{f"share of edges from those that know | {arm}": v for arm, v in share.items()},
    }


def _in_turn(net: nn.ModuleDict, loss: Callable[[Tensor], Tensor], steps: int, seed: int) -> None:
    """Move weights on batches of the even rows, and edges on batches of the odd rows, in turn."""
    levels = ("heads.*", "graph.strength"), ("graph.scores",)
    named = dict(net.named_parameters())
    optimisers = list[torch.optim.Optimizer]()
    for level in levels:
        with Scope("pattern", patterns=level).on(net) as moving:
            optimisers.append(torch.optim.Adam([named[n] for n in moving.names], lr=1e-2))
    note(rows=ROWS)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        for step in range(steps):
            with Scope("pattern", patterns=levels[step % 2]).on(net, optimisers[step % 2]):
                optimisers[step % 2].zero_grad()
                loss(2 * torch.randint(ROWS // 2, (64,)) + step % 2).backward()
                optimisers[step % 2].step()


def _fitted(arm: str, seed: int, steps: int, asks: bool, turns: int = 0) -> tuple[float, float]:
    """Return test R^2 and the fraction of edges that come from the first two nodes.

    With ``turns`` edges and weights move in turn in that number of steps, each on half the rows.
    """
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * ROWS, NODES, DIM, generator=draw)
    source = torch.tensor([0, 1, 0, 1, 0, 1]) if asks else torch.arange(NODES)
    y = x[:, source]
    kind = "learned" if arm == "learned" else "given"
    graph = drawn(lambda: StateGraph(DIM, kind, n=NODES, budget=BUDGET), seed)  # pyright: ignore
    heads = drawn(lambda: nn.ModuleList(nn.Linear(2 * DIM, DIM) for _ in range(NODES)), seed)
    own = torch.eye(NODES)
    given = {"all": torch.ones(NODES, NODES), "none": own, "random": own.clone()}
    free = torch.nonzero(own == 0)
    chosen = free[torch.randperm(len(free), generator=draw)[:BUDGET]]
    given["random"][chosen[:, 0], chosen[:, 1]] = 1.0
    fixed = given.get(arm)
    shares = nn.Parameter(torch.zeros(NODES, NODES))

    def said(rows: Tensor) -> Tensor:
        heard = graph(x[rows], adjacency=shares.exp() if arm == "weighted" else fixed)
        both = torch.cat([x[rows], heard], 2)
        return torch.stack([head(both[:, i]) for i, head in enumerate(heads)], 1)

    def loss(rows: Tensor) -> Tensor:
        return mse_loss(said(rows), y[rows])

    weights = [*graph.parameters(), *heads.parameters(), shares]
    if turns:
        _in_turn(nn.ModuleDict({"graph": graph, "heads": heads}), loss, turns, seed)
        note(parameters=sum(p.numel() for p in (*graph.parameters(), *heads.parameters())))
    else:
        minimise(loss, weights, ROWS, steps=steps, seed=seed, rate=1e-2)
    graph.eval()
    with torch.no_grad():
        held = torch.arange(ROWS, 2 * ROWS)
        r2 = 1 - float(mse_loss(said(held), y[held]) / y[held].var())
        edges = graph.edges(x[:1]) - own if arm == "learned" else torch.zeros(NODES, NODES)
    return r2, float(edges[:, :2].sum() / edges.sum().clamp(min=1))
