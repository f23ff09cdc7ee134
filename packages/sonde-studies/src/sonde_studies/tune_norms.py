"""Parameters to fine-tune on a new domain (norms, top, all), and the cost on the old one.

A small transformer on digits and on digits of inverted brightness.
"""

from copy import deepcopy
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from sonde import Model
from sonde.train import Contrast, Scope
from sonde_studies._recipe_data import items_of
from sonde_studies.recipes.tune_norms import tune_norms
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, digit_images, drawn, learn_labels, minimise

FIT, MORE, STEPS, EPOCHS, TINY = 800, 400, 400, 24, 8
DIM, WEIGHT, HEAT = 32, 0.5, 0.25
"""Of the alignment and uniformity beside the cross entropy; cosines over 0.25."""


@final
class TuneNormsStudy(Study):
    """A net trained on digits, fine-tuned on inverted digits in four scopes."""

    name = "tune-norms"
    title = "does tuning norms alone move less and keep more?"
    paper = "frankle2021batchnorm"
    fidelity = (
        "a transformer of two blocks; no low-rank arm; on the sphere norms and head move, as in "
        "the paper, whose mixed rows are left out"
    )
    data = (
        "digits; the new domain is the same digits with brightness inverted, 200 of 400 to tune on"
    )
    claims = (
        Claim("drift", "Norms alone move the states of the old domain less than tuning all does.",
              "linear CKA after the last block to that before, norms less all"),
        Claim("target", "They reach the new domain as well, to three points.",
              "accuracy on the new domain, norms less all, and 0.03"),
        Claim("source", "And keep the old domain better.",
              "accuracy on the old domain, norms less all"),
        Claim("sphere", "States on the sphere, aligned and uniform, reach the new domain better.",
              "accuracy on the new domain, norms and head, on the sphere less as they are"),
        Claim("unseen", "They carry over better to a third domain that no net has seen.",
              "accuracy on the third domain, norms and head, on the sphere less as they are"),
    )  # fmt: skip
    null = Claim("same", "Tuned on more of the old domain, scopes do not differ there.",
                 "accuracy on the old domain, norms less all")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, then run the recipe on the new domain and on more of the old domain."""
        x, label = digit_images(seed)
        net = drawn(_Net, seed)
        tick("train")
        learn_labels(net, x[:FIT], label[:FIT], steps=TINY if tiny else STEPS, seed=seed)
        more, rest = slice(FIT, FIT + MORE), slice(FIT + MORE, None)
        old = items_of(x[rest], label[rest])
        found: list[dict[str, Any]] = []
        for domain, pictures in (("new", 1 - x), ("old", x)):
            tick(f"tune on the {domain} domain")
            target = items_of(pictures[more], label[more])
            answer = tune_norms(
                Model(net), target, old, epochs=1 if tiny else EPOCHS, rate=3e-3, seed=seed,
                progress=False,
            )  # fmt: skip
            found.append({row["moved"]: row for row in answer.rows})
        (norms, every), same = (found[0][name] for name in ("norms", "all")), found[1]
        tick("tune on the sphere")
        sphere = _sphere_arms(net, x[more], label[more], x[rest], label[rest], seed, tiny)
        last = "CKA blocks.1:out"
        return {
            "drift": norms[last] - every[last],
            "target": norms["new domain"] - every["new domain"] + 0.03,
            "source": norms["old domain"] - every["old domain"],
            "sphere": sphere["sphere"]["new domain"] - sphere["plain"]["new domain"],
            "unseen": sphere["sphere"]["third domain"] - sphere["plain"]["third domain"],
            "same": same["norms"]["old domain"] - same["all"]["old domain"],
            **{
                f"{name} | {key}": row[key]
                for name, row in found[0].items()
                for key in ("share", "new domain", "old domain", last)
                if key in row
            },
            **{
                f"norms and head, {a} | {k}": v for a, row in sphere.items() for k, v in row.items()
            },
        }


def _sphere_arms(
    net: "_Net", x: Tensor, label: Tensor, held: Tensor, kind: Tensor, seed: int, tiny: bool
) -> dict[str, dict[str, float]]:
    """Tune norms and head by cross entropy, with states as they are and on the sphere.

    The third domain has inverted brightness, half of the contrast, and noise.
    """
    draw = torch.Generator().manual_seed(seed)
    noisy = 0.5 * (1 - held) + 0.15 * torch.randn(held.shape, generator=draw)
    domains = {"new domain": 1 - held, "third domain": noisy, "old domain": held}
    contrast, found = Contrast(HEAT, "uniform"), dict[str, dict[str, float]]()
    new = 1 - x[: len(x) // 2]
    for arm in ("plain", "sphere only", "sphere"):
        tuned = deepcopy(net)
        tuned.sphere = arm != "plain"

        def loss(rows: Tensor, tuned: _Net = tuned, arm: str = arm) -> Tensor:
            states = tuned.states(new[rows])
            value = cross_entropy(tuned.head(states), label[rows])
            return value + WEIGHT * contrast(states, label[rows]) if arm == "sphere" else value

        with Scope("pattern", patterns=("*norm*", "head.*")).on(tuned):
            moving = [p for p in tuned.parameters() if p.requires_grad]
            minimise(loss, moving, len(new), steps=TINY if tiny else STEPS // 2, seed=seed)
        found[arm] = {name: accuracy(tuned, v, kind) for name, v in domains.items()}
    return found


class _Net(nn.Module):
    """A transformer over the eight rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.places = nn.Linear(8, DIM), nn.Parameter(0.1 * torch.randn(8, DIM))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(DIM, 4, 64, 0.0, batch_first=True) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, 10)
        self.sphere = False

    def states(self, x: Tensor) -> Tensor:
        h = self.first(x.squeeze(1)) + self.places
        for block in self.blocks:
            h = block(h)
        h = self.norm(h.mean(1))
        return DIM**0.5 * normalize(h, dim=1) if self.sphere else h

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(x))
