"""A denoiser whose states are aligned with a classifier's: early, always, or never.

Flow matching on digits by a residual net of six blocks; the teacher learned to classify them.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.core import Constant, Schedule, StopAt
from sonde.train import Align
from sonde_studies._flow_matching import FIT, WIDTH, Denoiser, losses_beside
from sonde_studies._layers import probed
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies._token_denoiser import ARMS, losses, taught
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

STEPS, TINY, BATCH = 600, 6, 64
STOP = 2
"""The stopped arm stops at half of the steps."""
ORDER = 10_000
"""Batches and noise have another seed than the projector and the held-out noise."""
"""Added to the seed: of the batches and noise of all arms, and of the other plain training."""


@final
class AlignTeacherStudy(Study):
    """A denoiser without a teacher, and with alignment at one block: always, stopped, untrained."""

    name = "align-teacher"
    title = "does a teacher of states speed up a generative model?"
    paper = "yu2024repa"
    fidelity = (
        "a residual net on digits in place of a diffusion transformer on large pictures, and a "
        "transformer that is coarser in the middle for maps, places and angles"
    )
    data = "digits: 1,000 to train on, 797 to judge; the teacher is a classifier of the same rows"
    seconds = 45.0
    claims = (
        Claim("early", "After a third of the steps the loss is lower with the teacher.",
              "thousandths of the loss, plain less aligned, whose projector adds a fifth of the "
              "parameters",
              arms=("aligned", "plain")),
        Claim("late", "In the end it is no higher than without, to five thousandths.",
              "thousandths of the loss, plain less aligned, whose projector adds a fifth of the "
              "parameters, and 5",
              arms=("aligned", "plain")),
        Claim("stop", "Stopping at half is better than going on.",
              "thousandths of the loss, aligned less stopped",
              arms=("stopped", "aligned")),
        Claim("states", "The states of the block come to tell the digit better.",
              "accuracy of a linear probe, aligned (a projector adds a fifth of the parameters) "
              "less plain",
              arms=("aligned", "plain")),
        Claim("maps", "With maps of attention beside states, both until half of the steps, a "
              "transformer's loss ends lower than with states alone.",
              "thousandths of the loss, states less states and maps",
              arms=("tokens, maps", "tokens, states")),
        Claim("middle", "The states of a coarse middle stage, brought to the teacher's places, "
              "lower the loss after a third of the steps.",
              "thousandths of the loss, plain less middle, whose projector adds an eighth of the "
              "parameters",
              arms=("tokens, middle", "tokens, plain")),
        Claim("angles", "Angles between its rows beside them lower it further.",
              "thousandths of the loss, middle less middle and angles",
              arms=("tokens, angles", "tokens, middle")),
    )  # fmt: skip
    null = Claim("no weight", "With a teacher at weight 0 it learns as fast as without.",
                 "thousandths of the early loss, plain less weight 0")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm with the same noise."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        tick("teacher")
        net = drawn(lambda: mlp(64, WIDTH), seed)
        teacher = learned(net, x[:FIT], label[:FIT], seed, TINY if tiny else 200).module
        untrained = drawn(lambda: mlp(64, WIDTH), seed + 7)
        arms: dict[str, tuple[nn.Module | None, Schedule]] = {
            "plain": (None, Constant(0.0)),
            "aligned": (teacher, Constant(0.5)),
            "stopped": (teacher, StopAt(0.5, steps // STOP)),
            "untrained": (untrained, Constant(0.5)),
            "weight 0": (teacher, Constant(0.0)),
        }
        early, late, probe = dict[str, float](), dict[str, float](), dict[str, float]()
        for arm, (other, weight) in arms.items():
            tick(arm)
            model = drawn(Denoiser, seed)
            early[arm], late[arm] = _train(model, other, weight, x, seed, steps)
            probe[arm] = _probe(model, x, label)
        tick("tokens, teacher")
        of_tokens = taught(x, label, seed, TINY if tiny else 100)
        tokens = dict[str, tuple[float, float]]()
        for arm in ARMS:
            tick(f"tokens, {arm}")
            tokens[arm] = losses(of_tokens, x, arm, seed, steps // 2)
        thousand = 1_000.0
        return {
            "early": thousand * (early["plain"] - early["aligned"]),
            "late": thousand * (late["plain"] - late["aligned"]) + 5,
            "stop": thousand * (late["aligned"] - late["stopped"]),
            "states": probe["aligned"] - probe["plain"],
            "no weight": thousand * (early["plain"] - early["weight 0"]),
            "maps": thousand * (tokens["states"][1] - tokens["maps"][1]),
            "middle": thousand * (tokens["plain"][0] - tokens["middle"][0]),
            "angles": thousand * (tokens["middle"][0] - tokens["angles"][0]),
            **{f"tokens, early loss | {arm}": v for arm, (v, _) in tokens.items()},
            **{f"tokens, loss | {arm}": v for arm, (_, v) in tokens.items()},
            **{f"early loss | {arm}": v for arm, v in early.items()},
            **{f"loss | {arm}": v for arm, v in late.items()},
            **{f"probe | {arm}": v for arm, v in probe.items()},
        }


def _train(
    model: nn.Module,
    other: nn.Module | None,
    weight: Schedule,
    x: Tensor,
    seed: int,
    steps: int,
) -> tuple[float, float]:
    """Train, and return the held-out loss after a third of the steps and at the end."""
    site = ("blocks.1", "teacher:net.3" if other is not None else "blocks.2")
    return losses_beside(
        other or nn.Identity(),
        model,
        {site: [drawn(_aligned, seed)]},
        {site: [weight]},
        x,
        (seed + ORDER, seed),
        steps,
        BATCH,
    )


def _aligned() -> Align:
    """Return a loss with an initialised projector, so that its weights follow the seed too."""
    made = Align("cosine", "mlp", width=WIDTH, hidden=WIDTH)
    made(torch.zeros(2, WIDTH), torch.zeros(2, WIDTH))
    return made


@torch.no_grad()
def _probe(model: Denoiser, x: Tensor, label: Tensor) -> float:
    """Return the accuracy of a least-squares probe of the digit on the block's states."""
    draw = torch.Generator().manual_seed(5)
    t, noise = torch.full((len(x), 1), 0.3), torch.randn(x.shape, generator=draw)
    return probed(model.states(0.7 * (2 * x - 1) + 0.3 * noise, t)[2], label, FIT)
