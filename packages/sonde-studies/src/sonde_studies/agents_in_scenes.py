"""Agents that hear each other's queues of states, and leave a scene by one of two ways.

Planted scenes: who leads, how late the others follow, and which ways are open is known.
"""

from dataclasses import replace
from typing import final

import torch

from sonde_studies._agents import Scenes, explained, leaving, scenes
from sonde_studies.arms import part
from sonde_studies.study import Claim, Figures, Study, Tick

ROWS, TINY, STEPS, LONG, LEAVE = 400, 40, 400, 1_000, 800
NETS = ("together", "alone", "pooled", "recurrent")
LATENTS = {
    "scene": {},
    "agent": {"latent": "agent"},
    "none": {"latent": "none"},
    "no layout": {"layout": False},
}
MOVES = "R^2 of the next moves of agents that follow"


@final
class AgentsInScenesStudy(Study):
    """Queues over agents against cells that pool, and latents of scenes against others.

    Rates and steps were chosen on other seeds, alike for all nets.
    """

    name = "agents-in-scenes"
    title = "do queues over agents and a latent of the scene foretell where agents go?"
    paper = "tao2020dscmp"
    fidelity = (
        "one attention over queues in place of two modules, and moves alone, no positions; the "
        "layout is a grid of open and closed cells, not a segmented picture; the queues and the "
        "latent are two nets"
    )
    data = (
        "planted: 400 scenes of three agents to learn from, two of which do what the leader did "
        "five steps before; two ways out, of which one is closed in two of three scenes"
    )
    seconds = 50.0
    claims = (
        Claim("interaction", "Attention over the queues of all agents foretells .45 more of the "
              "moves than over the agent's own queue.", f"{MOVES}, together less alone",
              above=0.45, arms=("moves, together", "moves, alone")),
        Claim("pooled", "A cell that is told the mean of all agents, step by step, does so better "
              "than one that is not.", f"{MOVES}, pooled less not",
              arms=("moves, pooled", "moves, recurrent")),
        Claim("queue", "Queues of all agents foretell moves better than that cell.",
              f"{MOVES}, queues together less the pooled cell",
              arms=("moves, together", "moves, pooled")),
        Claim("queue, longer", "They do so too after 2.5 times the updates.",
              f"{MOVES}, queues together less the pooled cell, 1,000 updates each",
              arms=("longer, together", "longer, pooled")),
        Claim("latent", "The best of six answers by a latent of the scene lies closer than that of "
              "a net without a latent, with normal noise as wide as its errors.",
              "mean distance, noise less latent",
              arms=("leaving, none", "leaving, scene")),
        Claim("one latent", "It lies closer than with a latent for each agent.",
              "mean distance, latents of agents less of the scene",
              arms=("leaving, agent", "leaving, scene")),
        Claim("layout", "It lies closer with the layout than without.",
              "mean distance, without the layout less with it",
              arms=("leaving, no layout", "leaving, scene")),
        Claim("together", "Where both ways are open, agents leave by one way together in more "
              "answers than with a latent for each agent.",
              "fraction of answers, latent of the scene less of agents",
              arms=("leaving, scene", "leaving, agent")),
    )  # fmt: skip
    null = Claim("lots", "With layouts dealt by lot, answers take the open way as often as not.",
                 "fraction of agents' answers on the open side, less 0.5")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each net on the same scenes."""
        n, steps, long, leave = (TINY, 3, 4, 5) if tiny else (ROWS, STEPS, LONG, LEAVE)
        fit, judge = scenes(2 * seed, n), scenes(2 * seed + 1, ROWS)
        moves, longer = dict[str, float](), dict[str, float]()
        for how in NETS:
            tick(f"moves, {how}")
            moves[how] = explained(how, fit, judge, seed, steps)
        for how in ("together", "pooled"):
            tick(f"longer, {how}")
            longer[how] = explained(how, fit, judge, seed, long)
        found = dict[str, dict[str, float]]()
        for name, options in LATENTS.items():
            with part(f"leaving, {name}"):
                tick(f"leaving, {name}")
                found[name] = leaving(fit, judge, seed, leave, **options)  # pyright: ignore
        tick("leaving, by lot")
        far = {name: one["closest"] for name, one in found.items()}
        return {
            "interaction": moves["together"] - moves["alone"],
            "pooled": moves["pooled"] - moves["recurrent"],
            "queue": moves["together"] - moves["pooled"],
            "queue, longer": longer["together"] - longer["pooled"],
            "latent": far["none"] - far["scene"],
            "one latent": far["agent"] - far["scene"],
            "layout": far["no layout"] - far["scene"],
            "together": found["scene"]["one side"] - found["agent"]["one side"],
            "lots": by_lot(fit, judge, seed, leave) - 0.5,
            **{f"R^2 | {name}": v for name, v in moves.items()},
            **{f"R^2, longer | {name}": v for name, v in longer.items()},
            **{f"{what} | {name}": v for name, one in found.items() for what, v in one.items()},
        }


def by_lot(fit: Scenes, judge: Scenes, seed: int, steps: int) -> float:
    """Return how often answers keep to the open way where layouts are dealt out by lot."""
    first, other = _dealt(fit, seed), _dealt(judge, seed)
    return leaving(first, other, seed, steps)["open"]


def _dealt(some: Scenes, seed: int) -> Scenes:
    order = torch.randperm(len(some.layout), generator=torch.Generator().manual_seed(seed))
    return replace(some, layout=some.layout[order])
