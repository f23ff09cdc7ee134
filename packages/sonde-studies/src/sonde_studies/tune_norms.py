"""Which parameters of a small transformer to tune on a new domain, and the cost on the old one."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from sonde import Model
from sonde.train import Contrast, Scope
from sonde_studies._recipe_data import items_of
from sonde_studies.arms import Arms, arm
from sonde_studies.recipes.tune_norms import tune_norms
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, digit_images, drawn, learn_labels, minimise

FIT, MORE, STEPS, EPOCHS, TINY, SLOW = 800, 400, 400, 24, 8, 3e-4
DIM, WEIGHT, HEAT = 32, 0.5, 0.25
"""Of the alignment and uniformity beside the cross entropy; cosines over 0.25."""


@final
class TuneNormsStudy(Study):
    """A net trained on digits, fine-tuned on inverted digits in four scopes."""

    name = "tune-norms"
    title = "do norms reach a new domain, and keep more of the old one?"
    paper = "frankle2021batchnorm"
    fidelity = "a transformer of two blocks; no low-rank arm; the paper's mixed rows are left out"
    data = "digits; new: inverted, 200 of 400 to tune on; third: with less contrast and noise too"
    claims = (
        Claim("target", "Norms alone reach the new domain as well as all, to three points.",
              "accuracy on the new domain, norms less all, and 0.03",
              arms=("norms", "all")),
        Claim("source", "Norms and head keep more of the old domain than all weights do where "
              "these first reach the new one as well.",
              "accuracy on the old domain, norms and head less all, stopped early",
              arms=("norms and head, plain", "all, stopped early")),
        Claim("sphere", "States on the sphere, aligned and uniform, reach the new domain better.",
              "accuracy on the new domain, norms and head, on the sphere less as they are",
              arms=("norms and head, sphere", "norms and head, plain")),
        Claim("unseen", "States on the sphere, aligned and uniform, carry over better to a third "
              "domain that no net has seen.",
              "accuracy on the third domain, norms and head, on the sphere less as they are",
              arms=("norms and head, sphere", "norms and head, plain")),
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
        tick("tune norms and head")
        draw = torch.Generator().manual_seed(seed)
        noisy = 0.5 * (1 - x[rest]) + 0.15 * torch.randn(x[rest].shape, generator=draw)
        domains = {"new domain": 1 - x[rest], "third domain": noisy, "old domain": x[rest]}
        half = slice(FIT, FIT + MORE // 2)
        world = _World(1 - x[half], label[half], domains, label[rest], seed)
        steps = TINY if tiny else STEPS // 2
        arms, given = dict[str, dict[str, float]](), Arms()
        for name in ("plain", "sphere only", "sphere"):
            with arm(given, f"norms and head, {name}"):
                arms[name] = world.head_too(net, name, steps)
        with arm(given, "all, stopped early"):
            early = world.all_up_to(net, arms["plain"]["new domain"], steps)
        return {
            "target": norms["new domain"] - every["new domain"] + 0.03,
            "source": arms["plain"]["old domain"] - early["old domain"],
            "sphere": arms["sphere"]["new domain"] - arms["plain"]["new domain"],
            "unseen": arms["sphere"]["third domain"] - arms["plain"]["third domain"],
            "same": same["norms"]["old domain"] - same["all"]["old domain"],
            **{
                f"{name} | {key}": row[key]
                for name, row in found[0].items()
                for key in ("share", "new domain", "old domain")
            },
            **{f"norms and head, {a} | {k}": v for a, row in arms.items() for k, v in row.items()},
            **{f"all, stopped early | {key}": value for key, value in early.items()},
            **given.figures(),
        }


@dataclass(frozen=True)
class _World:
    """Rows of the new domain to tune on, and rows of each domain to judge."""

    x: Tensor
    label: Tensor
    domains: dict[str, Tensor]
    kind: Tensor
    seed: int

    def head_too(self, net: "_Net", arm: str, steps: int) -> dict[str, float]:
        """Tune norms and head by cross entropy, with states as they are or on the sphere."""
        contrast, tuned = Contrast(HEAT, "uniform"), deepcopy(net)
        tuned.sphere = arm != "plain"

        def loss(rows: Tensor) -> Tensor:
            states = tuned.states(self.x[rows])
            value = cross_entropy(tuned.head(states), self.label[rows])
            return value + WEIGHT * contrast(states, self.label[rows]) if arm == "sphere" else value

        with Scope("pattern", patterns=("*norm*", "head.*")).on(tuned):
            moving = [p for p in tuned.parameters() if p.requires_grad]
            minimise(loss, moving, len(self.x), steps=steps, seed=self.seed)
        return self.judged(tuned)

    def all_up_to(self, net: "_Net", least: float, steps: int) -> dict[str, float]:
        """Tune all weights to the first step with this accuracy on the new domain, or the last."""
        tuned, path = deepcopy(net), list[dict[str, float]]()

        def loss(rows: Tensor) -> Tensor:
            path.append(self.judged(tuned))
            return cross_entropy(tuned(self.x[rows]), self.label[rows])

        minimise(loss, tuned.parameters(), len(self.x), steps=steps, seed=self.seed, rate=SLOW)
        return next((row for row in path if row["new domain"] >= least), path[-1])

    def judged(self, net: "_Net") -> dict[str, float]:
        return {name: accuracy(net, x, self.kind) for name, x in self.domains.items()}


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
