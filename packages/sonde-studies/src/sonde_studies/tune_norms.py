"""Which parameters to move on a new domain: norms, the top, all; what it costs the old one.

A small transformer on digits and on digits of inverted brightness.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde_studies._recipe_data import items_of
from sonde_studies.recipes.tune_norms import tune_norms
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, drawn, learn_labels

FIT, MORE, STEPS, EPOCHS, TINY = 800, 400, 400, 24, 8


@final
class TuneNormsStudy(Study):
    """A net trained on digits, tuned on inverted ones by four scopes."""

    name = "tune-norms"
    title = "does tuning norms alone move less and keep more?"
    paper = "frankle2021batchnorm"
    fidelity = "a transformer of two blocks; no low-rank arm"
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
    )  # fmt: skip
    null = Claim("same", "Tuned on more of the old domain, scopes do not differ there.",
                 "accuracy on the old domain, norms less all")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, ask the recipe of the new domain, and of more of the old one."""
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
        last = "CKA blocks.1:out"
        return {
            "drift": norms[last] - every[last],
            "target": norms["new domain"] - every["new domain"] + 0.03,
            "source": norms["old domain"] - every["old domain"],
            "same": same["norms"]["old domain"] - same["all"]["old domain"],
            **{
                f"{name} | {key}": row[key]
                for name, row in found[0].items()
                for key in ("share", "new domain", "old domain", last)
                if key in row
            },
        }


class _Net(nn.Module):
    """A transformer over the eight rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.places = nn.Linear(8, 32), nn.Parameter(0.1 * torch.randn(8, 32))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def states(self, x: Tensor) -> Tensor:
        h = self.first(x.squeeze(1)) + self.places
        for block in self.blocks:
            h = block(h)
        return self.norm(h.mean(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(x))
