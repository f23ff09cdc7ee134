"""A denoiser whose states are aligned with a classifier's: early, always, or never.

Flow matching on digits by a residual net of six blocks; the teacher learned to classify them.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde import training
from sonde.core import Constant, Schedule, StopAt
from sonde.train import Align
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

FIT, STEPS, TINY, BATCH, WIDTH, BLOCKS = 1_000, 600, 6, 64, 96, 6
EARLY, STOP = 3, 2
"""The early loss is taken after a third of the steps; the stopped arm stops at half."""
ORDERS = (10_000, 20_000)
"""Added to the seed: of the batches and noise of all arms, and of the other plain training."""


@final
class AlignTeacherStudy(Study):
    """A denoiser without a teacher, and with alignment at one block: always, stopped, untrained."""

    name = "align-teacher"
    title = "does a teacher of states speed up a generative model?"
    paper = "yu2024repa"
    fidelity = "a residual net on digits in place of a diffusion transformer on large pictures"
    data = "digits: 1,000 to train on, 797 to judge; the teacher is a classifier of the same rows"
    claims = (
        Claim("early", "After a third of the steps the loss is lower with the teacher.",
              "thousandths of the loss, plain less aligned"),
        Claim("late", "In the end it is no higher than without, to five thousandths.",
              "thousandths of the loss, plain less aligned, and 5"),
        Claim("stop", "Stopping at half is better than going on.",
              "thousandths of the loss, aligned less stopped"),
        Claim("states", "The states of the block come to tell the digit better.",
              "accuracy of a linear probe, aligned less plain"),
    )  # fmt: skip
    null = Claim(
        "order",
        "Two plain trainings that differ in batches and noise alone learn as fast.",
        "thousandths of the early loss, plain less plain in another order",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm with the same noise."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        tick("teacher")
        net = drawn(lambda: mlp(64, WIDTH), seed)
        teacher = learned(net, x[:FIT], label[:FIT], seed, TINY if tiny else 200).module
        untrained = drawn(lambda: mlp(64, WIDTH), seed + 7)
        # Weights and held-out noise have another seed than either order, so the two plain
        # trainings are exchangeable: the difference of their losses is 0 on average.
        order, another = (seed + added for added in ORDERS)
        arms: dict[str, tuple[nn.Module | None, Schedule, int]] = {
            "plain": (None, Constant(0.0), order),
            "aligned": (teacher, Constant(0.5), order),
            "stopped": (teacher, StopAt(0.5, steps // STOP), order),
            "untrained": (untrained, Constant(0.5), order),
            "another order": (None, Constant(0.0), another),
        }
        early, late, probe = dict[str, float](), dict[str, float](), dict[str, float]()
        for arm, (other, weight, batches) in arms.items():
            tick(arm)
            model = drawn(_Denoiser, seed)
            early[arm], late[arm] = _train(model, other, weight, x, seed, batches, steps)
            probe[arm] = _probe(model, x, label)
        thousand = 1_000.0
        return {
            "early": thousand * (early["plain"] - early["aligned"]),
            "late": thousand * (late["plain"] - late["aligned"]) + 5,
            "stop": thousand * (late["aligned"] - late["stopped"]),
            "states": probe["aligned"] - probe["plain"],
            "order": thousand * (early["plain"] - early["another order"]),
            **{f"early loss | {arm}": v for arm, v in early.items()},
            **{f"loss | {arm}": v for arm, v in late.items()},
            **{f"probe | {arm}": v for arm, v in probe.items()},
        }


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.body(h)


class _Denoiser(nn.Module):
    """Six residual blocks; the clean image is passed along for the teacher only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(65, WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(BLOCKS))
        self.last = nn.Linear(WIDTH, 64)

    def forward(self, mixed: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        h = self.first(torch.cat([mixed, t], 1))
        for block in self.blocks:
            h = block(h)
        return self.last(h)


class _OfClean(nn.Module):
    """A teacher that reads the clean image from the denoiser's input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, mixed: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        return self.net(clean)


def _flow(x: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return mixtures of images and noise, their times, and the velocities between them."""
    t, noise = torch.rand(len(x), 1, generator=draw), torch.randn(x.shape, generator=draw)
    given = 2 * x - 1
    return (1 - t) * given + t * noise, t, noise - given


def _train(
    model: nn.Module,
    other: nn.Module | None,
    weight: Schedule,
    x: Tensor,
    seed: int,
    order: int,
    steps: int,
) -> tuple[float, float]:
    """Train, and return the held-out loss after a third of the steps and at the end.

    ``order`` draws batches and noise; ``seed`` the projector and the held-out noise.
    """
    align = drawn(_aligned, seed)
    draw, teacher = torch.Generator().manual_seed(order), _OfClean(other or nn.Identity())
    site = ("blocks.1", "teacher:net.3" if other is not None else "blocks.2")
    early = 0.0
    with training(model, {site: align}, weight=weight, teacher=teacher) as terms:
        adam = torch.optim.Adam([*model.parameters(), *terms.parameters()], lr=2e-3)
        for step in range(steps):
            rows = x[torch.randint(FIT, (BATCH,), generator=draw)]
            mixed, t, wanted = _flow(rows, draw)
            loss = (model(mixed, t, rows) - wanted).square().mean() + terms.loss()
            adam.zero_grad()
            loss.backward()
            adam.step()
            terms.step()
            early = _loss(model, x, seed) if step == steps // EARLY else early
    return early, _loss(model, x, seed)


def _aligned() -> Align:
    """Return a loss with an initialised projector, so that its weights follow the seed too."""
    made = Align("cosine", "mlp", width=WIDTH, hidden=WIDTH)
    made(torch.zeros(2, WIDTH), torch.zeros(2, WIDTH))
    return made


@torch.no_grad()
def _loss(model: nn.Module, x: Tensor, seed: int) -> float:
    held = x[FIT:].repeat(8, 1)
    mixed, t, wanted = _flow(held, torch.Generator().manual_seed(seed + 1))
    return float((model(mixed, t, held) - wanted).square().mean())


@torch.no_grad()
def _probe(model: nn.Module, x: Tensor, label: Tensor) -> float:
    """Return the accuracy of a least-squares probe of the digit on the block's states."""
    draw = torch.Generator().manual_seed(5)
    t, noise = torch.full((len(x), 1), 0.3), torch.randn(x.shape, generator=draw)
    h = model.get_submodule("first")(torch.cat([0.7 * (2 * x - 1) + 0.3 * noise, t], 1))
    for name in ("blocks.0", "blocks.1"):
        h = model.get_submodule(name)(h)
    rows = torch.cat([h, torch.ones(len(h), 1)], 1)
    wanted = torch.nn.functional.one_hot(label, 10).float()
    weight = torch.linalg.lstsq(rows[:FIT], wanted[:FIT], driver="gelsd").solution
    return float(((rows[FIT:] @ weight).argmax(1) == label[FIT:]).double().mean())
