"""Planted scenes of agents that move together, with a layout, and nets that foretell them."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.layers import ConditionalLatent, StateQueue
from sonde_studies.worlds.learning import drawn, minimise

AGENTS, LENGTH, DELAY, SIDE, TURN, NOISE = 3, 16, 5, 4, 2.0, 0.2
DIM, WIDTH, DRAWS, RATE = 16, 2, 6, 5e-3
LEFT, RIGHT = 0, SIDE - 1
"""Cells of the layout's first line that are the ways out."""
How = Literal["together", "alone", "pooled", "recurrent"]


@final
@dataclass(frozen=True)
class Scenes:
    """Scenes of three agents: a leader, and two that follow.

    Parameters
    ----------
    moves : Float[Tensor, "scene agent step 3"]
        Moves on a plane, and whether the agent leads.
    layout : Float[Tensor, "scene cell"]
        1 for cells that are closed, of four by four.
    open : Bool[Tensor, "scene 2"]
        Whether the ways out on the left and on the right are open; one at least is.
    after : Float[Tensor, "scene agent 2"]
        Where the agents go when they leave: all on the left, or all on the right.
    """

    moves: Float[Tensor, "scene agent step 3"]
    layout: Float[Tensor, "scene cell"]
    open: Bool[Tensor, "scene 2"]
    after: Float[Tensor, "scene agent 2"]


def scenes(seed: int, n: int) -> Scenes:
    """Return scenes in which agents do what their leader did five steps before.

    The leader's moves are a random walk of its direction. At the end agents leave by one way, drawn
    by lot where both are open, and keep a part of their last moves.
    """
    draw = torch.Generator().manual_seed(seed)
    turns = 0.9 * torch.randn(n, LENGTH, generator=draw)
    turns[:, 0] = 2 * torch.pi * torch.rand(n, generator=draw)
    angle = turns.cumsum(1)
    leader = torch.stack([angle.cos(), angle.sin()], 2)
    own = torch.randn(n, AGENTS, DELAY, 2, generator=draw)
    late = torch.cat([own, leader[:, None, :-DELAY].expand(-1, AGENTS, -1, -1)], 2)
    leads = torch.randint(AGENTS, (n,), generator=draw)[:, None] == torch.arange(AGENTS)
    moves = torch.where(leads[..., None, None], leader[:, None], late)
    moves = moves + NOISE * torch.randn(moves.shape, generator=draw)
    layout = (torch.rand(n, SIDE * SIDE, generator=draw) < 0.3).float()
    kind = torch.randint(3, (n,), generator=draw)  # both open, left alone, right alone
    free = torch.stack([kind != 2, kind != 1], 1)
    layout[:, LEFT], layout[:, RIGHT] = (~free).float().T
    side = torch.where(kind == 0, torch.randint(2, (n,), generator=draw), kind - 1)
    after = moves[:, :, -3:].mean(2)
    after = torch.stack([after[..., 0] + TURN * (2 * side - 1)[:, None], after[..., 1]], 2)
    after = after + NOISE * torch.randn(after.shape, generator=draw)
    flag = leads[..., None, None].float().expand(-1, -1, LENGTH, 1)
    return Scenes(torch.cat([moves, flag], 3), layout, free, after)


class AgentNet(nn.Module):
    """Next moves of agents, from queues of states or from a cell.

    Parameters
    ----------
    how : {"together", "alone", "pooled", "recurrent"}
        Attention over the queues of all agents of a scene, over the own queue, or a recurrent cell
        that reads, step by step, the agent's state and a message: of itself, or the mean of all
        agents' (pooled).
    """

    def __init__(self, how: How) -> None:
        super().__init__()
        self.how = how
        self.first, self.last = nn.Linear(3, DIM), nn.Linear(DIM, 2)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, DIM))
        self.queue = self.cell = None
        if how in ("together", "alone"):
            self.queue = StateQueue(DIM, DELAY + 1, "attention")
            self.wide = nn.Sequential(nn.Linear(DIM, 55), nn.ReLU(), nn.Linear(55, DIM))
        else:
            self.cell = nn.GRU(2 * DIM, DIM, batch_first=True)
            self.message = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU())

    def forward(self, moves: Float[Tensor, "scene agent step 3"]) -> Tensor:
        """Return the next moves (scene agent step 2) after each step."""
        return self.last(self.states(moves))

    def states(self, moves: Float[Tensor, "scene agent step 3"]) -> Tensor:
        """Return the states (scene agent step dim)."""
        n = len(moves)
        h = self.first(moves) + self.places
        if self.cell is not None:
            told = self.message(h)
            told = told.mean(1, keepdim=True).expand_as(h) if self.how == "pooled" else told
            both = torch.cat([h, told], 3).flatten(0, 1)
            return self.cell(both)[0].unflatten(0, (n, AGENTS))
        scene = torch.arange(n).repeat_interleave(AGENTS)
        queue = self.queue
        assert queue is not None, "a net has a cell or a queue"
        h = queue(h.flatten(0, 1), scene=scene if self.how == "together" else None)
        return (h + self.wide(h)).unflatten(0, (n, AGENTS))


def explained(how: How, fit: Scenes, judge: Scenes, seed: int, steps: int) -> float:
    """Return the share of the variance of next moves of agents that follow, that a net explains."""
    net = drawn(lambda: AgentNet(how), seed)
    x, y = fit.moves[:, :, :-1], fit.moves[:, :, 1:, :2]

    def loss(rows: Tensor) -> Tensor:
        return mse_loss(net(_padded(x[rows]))[:, :, DELAY:-1], y[rows][:, :, DELAY:])

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed, rate=RATE)
    with torch.no_grad():
        found = net(_padded(judge.moves[:, :, :-1]))[:, :, DELAY:-1]
    follows = judge.moves[:, :, 0, 2] == 0
    truth = judge.moves[:, :, 1 + DELAY :, :2][follows]
    return 1 - float(mse_loss(found[follows], truth) / truth.var(correction=0))


def _padded(moves: Tensor) -> Tensor:
    """Return moves with one more step, so that all positions are read."""
    return torch.cat([moves, moves[:, :, -1:]], 2)


class LeavingNet(nn.Module):
    """Where the agents of a scene go, given its layout, their last moves, and a latent.

    Parameters
    ----------
    latent : {"scene", "agent", "none"}
        One latent for the scene, one for each agent, or none.
    layout : bool
        Whether the layout is read.
    """

    def __init__(self, latent: Literal["scene", "agent", "none"], layout: bool = True) -> None:
        super().__init__()
        self.latent, self.layout = latent, layout
        self.scene = nn.Sequential(nn.Linear(SIDE * SIDE, 32), nn.ReLU(), nn.Linear(32, 8))
        target = 2 * AGENTS if latent == "scene" else 2
        self.draws = ConditionalLatent(8 + 6, WIDTH, target)
        wide = 122 if latent == "none" else 48  # as many parameters as with a latent
        self.last = nn.Sequential(nn.Linear(8 + 6 + WIDTH, wide), nn.ReLU(), nn.Linear(wide, 2))

    def contexts(self, some: Scenes, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the contexts of the latents, and of each agent (scene agent 14)."""
        seen = self.scene(some.layout[rows]) * float(self.layout)
        moves = some.moves[rows][:, :, -3:, :2].flatten(2)
        each = torch.cat([seen[:, None].expand(-1, AGENTS, -1), moves], 2)
        return (each.mean(1) if self.latent == "scene" else each.flatten(0, 1)), each

    def answers(self, each: Tensor, z: Tensor) -> Tensor:
        """Return where the agents go (scene agent 2)."""
        z = (
            z[:, None].expand(-1, AGENTS, -1)
            if self.latent == "scene"
            else z.unflatten(0, (len(each), AGENTS))
        )
        return self.last(torch.cat([each, z], 2))

    def loss(self, some: Scenes, rows: Tensor, noise: Tensor) -> Tensor:
        """Return the error of an answer, plus the divergence of the latents."""
        context, each = self.contexts(some, rows)
        truth = some.after[rows]
        if self.latent == "none":
            return (
                (self.answers(each, each.new_zeros(len(each) * AGENTS, WIDTH)) - truth)
                .square()
                .mean()
            )
        target = truth.flatten(1) if self.latent == "scene" else truth.flatten(0, 1)
        found = self.answers(each, self.draws(context, target, noise[: len(context)]))
        rate = self.draws.kl(context, target).sum() / len(each)
        return (found - truth).square().sum((1, 2)).mean() / (2 * NOISE**2) + rate

    @torch.no_grad()
    def drawn(self, some: Scenes, spread: float, seed: int) -> Float[Tensor, "draw scene agent 2"]:
        """Return several answers; without a latent, the answer and normal noise of a spread."""
        source = torch.Generator().manual_seed(seed)
        context, each = self.contexts(some, torch.arange(len(some.layout)))
        found = list[Tensor]()
        for _ in range(DRAWS):
            noise = torch.randn(len(context), WIDTH, generator=source)
            z = noise * 0 if self.latent == "none" else self.draws(context, noise=noise)
            out = self.answers(each, z)
            if self.latent == "none":
                out = out + spread * torch.randn(out.shape, generator=source)
            found.append(out)
        return torch.stack(found)


def leaving(
    fit: Scenes, judge: Scenes, seed: int, steps: int,
    latent: Literal["scene", "agent", "none"] = "scene", layout: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Return the error of the best of several answers, and how often answers keep to open ways.

    ``closest``: the mean distance of agents of the best answer to a scene. ``open``: of scenes with
    one open way, the fraction of agents' answers on its side. ``one side``: of scenes with two, the
    fraction of answers in which all agents go to one side.
    """
    net = drawn(lambda: LeavingNet(latent, layout), seed)
    source = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        return net.loss(fit, rows, torch.randn(len(rows) * AGENTS, WIDTH, generator=source))

    minimise(loss, net.parameters(), len(fit.layout), steps=steps, seed=seed, rate=RATE)
    with torch.no_grad():
        plain = net.drawn(fit, 0.0, seed)
        spread = float((plain[0] - fit.after).square().mean().sqrt())
    answers = net.drawn(judge, spread, seed)
    far = (answers - judge.after).square().sum(3).sqrt().mean(2)
    moved = answers[..., 0] - judge.moves[:, :, -3:, 0].mean(2)
    one = judge.open.sum(1) == 1
    wanted = judge.open[:, 1].float() * 2 - 1
    keeps = (moved[:, one] * wanted[one, None] > 0).double().mean()
    sides = (moved[:, ~one] > 0).double().mean(2)
    return {
        "closest": float(far.min(0).values.mean()),
        "open": float(keeps),
        "one side": float(((sides == 0) | (sides == 1)).double().mean()),
    }
