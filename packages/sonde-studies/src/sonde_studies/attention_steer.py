"""Test whether steered attention keeps the rest of an image while an object is pasted.

A toy: boards of two digits of one kind in one light, a small transformer that takes noise away in
five steps, and a digit of another kind in the opposite light pasted over the right one. The net
tells the light from the whole board, so what is pasted changes the light of the rest. What came out
(ten seeds): it moves by .48 of the largest light. The attention of its own run keeps none of that,
since the weights are the old ones and the values the pasted ones; forbidding keeps .40, the first
of five steps .18, and the pasted digit is then off by .74 in place of .54.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

import sonde
from sonde.edit import AttentionSteer
from sonde.tap import Tap
from sonde_studies._boards import COLUMNS, HEADS, ROWS, boards, trained
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick

STEPS, BOARDS = 700, 200
NOISE = (0.8, 0.6, 0.4, 0.25, 0.1)
LEFT = tuple(i for i in range(ROWS * COLUMNS) if i % COLUMNS < COLUMNS // 2)
RIGHT = tuple(i for i in range(ROWS * COLUMNS) if i not in LEFT)
SITES = ["blocks.0.attention:probs", "blocks.1.attention:probs"]


@final
class AttentionSteerStudy(Study):
    """Two digits side by side, one of them pasted, and a small transformer that denoises."""

    name = "attention-steer"
    title = "does steered attention leave the background alone where something is pasted?"
    paper = "wang2024primecomposer"
    fidelity = (
        "attention between regions is taken from the background's own run, or forbidden, in all "
        "five steps or in the first; no text, no latent space; nothing was chosen on the outcome"
    )
    data = (
        "digits in pairs of one kind and one light; 200 boards with another kind in the opposite "
        "light pasted at the right"
    )
    claims = (
        Claim(
            "premise",
            "Premise: pasted and denoised without steering, the background moves.",
            "mean absolute change of its pixels",
            above=0.05,
        ),
        Claim(
            "prior keeps",
            "With the attention of its own run, a second pass for each step, a background moves "
            "less.",
            "change without steering less with it",
            premise="premise",
            arms=("prior", "plain"),
        ),
        Claim(
            "forbidding keeps",
            "Where it may not look at the pasted digit it moves less.",
            "change without steering less with it",
            premise="premise",
            arms=("forbid", "plain"),
        ),
        Claim(
            "first step is enough",
            "Forbidding in the first of five steps keeps more than a fifth of what all five keep.",
            "change kept by the first step, share of that by all, less 0.2",
            premise="forbidding keeps",
        ),
        Claim(
            "object stays",
            "The pasted digit comes out as near to what was pasted, to 0.01.",
            "mean absolute error without steering less the larger one of both ways, one of which "
            "takes twice the passes, and 0.01",
            arms=("prior", "plain"),
        ),
    )
    null = Claim(
        "own maps",
        "With the attention of their own run boards come out as they do without steering.",
        "share of the pixels that change by more than a thousandth",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a denoiser, paste a digit, and denoise with and without steering."""
        tick("train")
        draw = torch.Generator().manual_seed(seed)
        net = trained(draw, seed, 20 if tiny else STEPS)
        tick("paste")
        n = 20 if tiny else BOARDS
        board, kind, light = boards(n, draw)
        other, theirs, their_light = boards(4 * n, draw)
        pasted = board.clone()
        for i in range(n):
            j = int((theirs != kind[i]).nonzero()[i % n, 0])
            pasted[i, :, 8:] = other[j, :, 8:] - their_light[j] - light[i]
        noise = [torch.randn(board.shape, generator=draw) for _ in NOISE]
        with part("prior"):  # it takes its attention from this run
            alone, probs = _denoised(net, board, noise)
        prior = AttentionSteer(HEADS, queries=LEFT)
        forbid = AttentionSteer(HEADS, queries=LEFT, keys=RIGHT, how="forbid")
        arms: dict[str, dict[str, Any]] = {
            "plain": {},
            "prior": {"steer": prior, "probs": probs},
            "forbid": {"steer": forbid},
            "forbid first": {"steer": forbid, "steps": 1},
        }
        made = dict[str, Tensor]()
        for name, how in arms.items():
            with part(name):
                made[name] = _denoised(net, pasted, noise, **how)[0]
        each = {name: (x - alone)[:, :, :8].abs().mean((1, 2)) for name, x in made.items()}
        moved = {name: float(x.mean()) for name, x in each.items()}
        off = {name: float((x - pasted)[:, :, 8:].abs().mean()) for name, x in made.items()}
        kept = {name: moved["plain"] - value for name, value in moved.items()}
        return {
            "premise": moved["plain"],
            "prior keeps": kept["prior"],
            "forbidding keeps": kept["forbid"],
            "first step is enough": kept["forbid first"] / kept["forbid"] - 1 / len(NOISE),
            "object stays": off["plain"] - max(off["prior"], off["forbid"]) + 0.01,
            "own maps": moved_by(net, board, noise, probs),
            **{f"background moves | {name}": value for name, value in moved.items()},
            **{f"object is off by | {name}": value for name, value in off.items()},
        }


def moved_by(
    net: nn.Module, board: Tensor, noise: list[Tensor], probs: list[dict[str, Tensor]]
) -> float:
    """Return the share of pixels that attention maps which are put in at the left change."""
    steer = AttentionSteer(HEADS, queries=LEFT)
    alone, steered = (
        _denoised(net, board, noise, **how)[0] for how in ({}, {"steer": steer, "probs": probs})
    )
    return float(((steered - alone).abs() > 1e-3).double().mean())


@torch.no_grad()
def _denoised(
    net: nn.Module,
    x: Tensor,
    noise: list[Tensor],
    steer: AttentionSteer | None = None,
    probs: list[dict[str, Tensor]] | None = None,
    steps: int = len(NOISE),
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return boards after all denoising steps, and all attention maps."""
    seen: list[dict[str, Tensor]] = []
    note(passes=len(noise) * len(x))
    for step, (size, drawn) in enumerate(zip(NOISE, noise, strict=True)):
        fed = x + size * drawn, torch.full((len(x),), size)
        if steer is None or step >= steps:
            with Tap(net, SITES) as tap:
                x = net(*fed)
            seen.append(dict(tap.rows))
        else:
            others = None if probs is None else {"source": probs[step]}
            with sonde.editing(net, steer, SITES, others=others):
                x = net(*fed)
    return x, seen
