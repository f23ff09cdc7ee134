"""A gate that says when a node of a learned graph hears others, against hearing them always.

Simulated: the state of a node says whether its answer is its own or that of another node.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.layers import StateGraph
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

NODES, DIM, BUDGET, HIDDEN, ROWS, STEPS, TINY = 6, 6, 8, 32, 2000, 800, 10
KNOW = 2
"""The first nodes, whose states the others have to answer."""


@final
class WhenToListenStudy(Study):
    """Four nodes whose state says whether to answer with it or with another node's state."""

    name = "when-to-listen"
    title = "does a gate that says when to listen help nodes that need not always?"
    paper = "hu2024commformer"
    fidelity = "one layer, edges and gate learned together; no agents that act"
    data = "simulated: six nodes of random states; two know, four need them in half of the rows"
    claims = (
        Claim("gated", "With a gate that reads a node's state nodes err less than if they always "
              "listen, with equally many learned edges and a head of two layers that reads the "
              "state, too.",
              "R^2 with a gate less R^2 without", arms=("gated", "always")),
        Claim("opens", "The gate is open where the answer is another node's.",
              "rise of the mean gate from nodes that need not listen to those that have to, "
              "less 0.5"),
        Claim("half", "Half of the messages are enough: a gate that is rounded to open or closed "
              "loses at most 0.02.",
              "0.02 less R^2 that the rounding costs"),
    )  # fmt: skip
    null = Claim("nothing", "Where nodes have to listen in every row the gate adds nothing.",
                 "R^2 with a gate less R^2 without",
                 arms=("gated, always asked", "always, always asked"))  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train with a gate and without one, where half of the rows ask and where all do."""
        steps = TINY if tiny else STEPS
        r2, gates = dict[str, float](), dict[str, float]()
        for always, world_name in ((False, ""), (True, ", always asked")):
            for arm in ("gated", "always"):
                tick(arm + world_name)
                r2[arm + world_name], gate = _fitted(arm == "gated", always, seed, steps)
                gates |= gate
        return {
            "gated": r2["gated"] - r2["always"],
            "opens": gates["open"] - gates["closed"] - 0.5,
            "half": 0.02 - (r2["gated"] - gates["rounded"]),
            "nothing": r2["gated, always asked"] - r2["always, always asked"],
            **{f"R^2 | {arm}": v for arm, v in r2.items()},
            **{f"gate | {what}": v for what, v in gates.items()},
        }


@final
class _Net(nn.Module):
    """A graph, and a head for each node that reads its state and what it heard."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))
            for _ in range(NODES)
        )
        self.graph = StateGraph(DIM, "learned", n=NODES, budget=BUDGET, gated=gated)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, self.graph(x)], 2)
        return torch.stack([head(both[:, i]) for i, head in enumerate(self.heads)], 1)


def world(seed: int, always: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states of nodes, their answers, and which nodes have to listen.

    Parameters
    ----------
    seed : int
    always : bool
        Every node but the first two has to listen in each row.
    """
    x = torch.randn(2 * ROWS, NODES, DIM, generator=torch.Generator().manual_seed(seed))
    source = torch.tensor([i % KNOW for i in range(NODES)])
    listens = torch.ones(2 * ROWS, NODES, dtype=torch.bool) if always else x[..., 0] > 0
    listens[:, :KNOW] = False
    return x, torch.where(listens[..., None], x[:, source], x), listens


def _fitted(gated: bool, always: bool, seed: int, steps: int) -> tuple[float, dict[str, float]]:
    """Return R^2 on fresh rows, and what the gate does there."""
    x, y, listens = world(seed, always)
    net = drawn(lambda: _Net(gated), seed)
    minimise(
        lambda rows: mse_loss(net(x[rows])[:, KNOW:], y[rows, KNOW:]),
        net.parameters(), ROWS, steps=steps, seed=seed, rate=1e-2,
    )  # fmt: skip
    net.eval()
    x, y, listens = x[ROWS:], y[ROWS:, KNOW:], listens[ROWS:, KNOW:]
    with torch.no_grad():

        def r2() -> float:
            return 1 - float(mse_loss(net(x)[:, KNOW:], y) / y.var())

        exact = r2()
        if net.graph.gate is None or always:
            return exact, {}
        gate = net.graph.gate(x[:, KNOW:]).sigmoid()[..., 0]
        hook = net.graph.gate.register_forward_hook(lambda _m, _i, out: out.sign() * torch.inf)
        rounded = r2()
        hook.remove()
        return exact, {
            "open": float(gate[listens].mean()),
            "closed": float(gate[~listens].mean()),
            "rounded": rounded,
        }
