"""A small net, trained on masked pixels, a contrast and several labels, or on some of these."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import sonde
from sonde.train import Contrast, MaskedFeatures
from sonde_studies._labelled_pictures import PATCH, SIDE, changed, patches
from sonde_studies.arms import note
from sonde_studies.worlds.learning import drawn

DIM, HIDDEN, CODE, HEAT, BATCH, RATE = 12, 256, 32, 0.2, 48, 2e-3
TOKENS = (SIDE // PATCH) ** 2
PIXELS = ("embed", "embed:in")
WEIGHT = {"pixels": 20.0, "contrast": 1.0, "labels": 4.0}
PARTS = tuple(WEIGHT)


class PatchNet(nn.Module):
    """An embedding of each patch, and three layers from all patches to a code."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH**2, DIM)
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(TOKENS * DIM, HIDDEN), nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, CODE),
        )  # fmt: skip

    def forward(
        self, pixels: Float[Tensor, "picture patch pixel"]
    ) -> Float[Tensor, "picture unit"]:
        """Return the code."""
        return self.body(self.embed(pixels))


def _decoder() -> nn.Module:
    """Return two layers from a code to states of all patches."""
    return nn.Sequential(
        nn.Linear(CODE, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, TOKENS * DIM),
        nn.Unflatten(1, (TOKENS, DIM)),
    )  # fmt: skip


class _Labels(nn.Module):
    """Binary cross-entropy of several labels, read linearly from each row."""

    batching, reducer = "mean", "mean"

    def __init__(self, n: int) -> None:
        super().__init__()
        self.head = nn.Linear(CODE, n)

    def forward(self, x: Tensor, facts: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(self.head(x), facts)


def learn(
    net: PatchNet,
    arms: Sequence[str],
    picture: Float[Tensor, "picture line column"],
    facts: Float[Tensor, "picture fact"],
    noise: float,
    seed: int,
    steps: int,
) -> None:
    """Train on two changed views of each picture, by the losses of these arms.

    Parameters
    ----------
    net : PatchNet
    arms : sequence of {"pixels", "contrast", "labels"}
        The last two act on the same rows and have a weight each.
    picture, facts
        Pictures and their labels, each 0 or 1.
    noise : float
        Standard deviation of the noise of a view.
    seed, steps : int
    """
    rebuilder = nn.Sequential(net.body, drawn(_decoder, seed))
    hides = MaskedFeatures("pixels", width=PATCH**2, rebuilder=rebuilder, in_forward=False)
    of_rows = {"contrast": Contrast(HEAT), "labels": drawn(lambda: _Labels(facts.shape[1]), seed)}
    sites = {PIXELS: {"pixels": hides}, "body": of_rows}
    used = {site: [arm for arm in own if arm in arms] for site, own in sites.items()}
    losses: dict[Any, Any] = {s: [sites[s][arm] for arm in own] for s, own in used.items() if own}
    weight: dict[Any, Any] = {s: [WEIGHT[arm] for arm in own] for s, own in used.items() if own}
    columns = {"facts": facts} if "labels" in arms else {}
    with (
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        sonde.training(net, losses, weight=weight) as terms,
    ):
        torch.manual_seed(seed)
        note(rows=len(facts))
        optimiser: torch.optim.Optimizer | None = None
        for _ in range(steps):
            some = torch.randint(len(facts), (BATCH,))
            for _ in range(2):
                net(patches(changed(picture[some], noise)))
            loss = terms.loss(views=2, **{name: column[some] for name, column in columns.items()})
            if optimiser is None:  # the losses know their widths from here on
                own = {id(p): p for p in (*net.parameters(), *terms.parameters())}
                optimiser = torch.optim.Adam(own.values(), lr=RATE)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            terms.step()
    net.eval()
