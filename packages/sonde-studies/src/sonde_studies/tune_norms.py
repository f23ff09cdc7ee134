"""Which parameters to move on a new domain: norms, the top, all; what it costs the old one.

A small transformer on digits and on digits of inverted brightness.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.measure import cka
from sonde.train import Scope
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, drawn, learn_labels, minimise

FIT, MORE, STEPS, TUNE, TINY = 800, 200, 400, 150, 8
RULES = {"norms": ("norms", 1), "top": ("top", 1), "bias": ("bias", 1), "all": ("all", 1)}


@final
class TuneNormsStudy(Study):
    """A net trained on digits, tuned on inverted ones by four scopes."""

    name = "tune-norms"
    title = "does tuning norms alone move less and keep more?"
    paper = "frankle2021batchnorm"
    fidelity = "a transformer of two blocks; no low-rank arm"
    data = "digits; the new domain is the same digits with brightness inverted, 200 to tune on"
    claims = (
        Claim("drift", "Norms alone move the states of the old domain less than tuning all does.",
              "linear CKA to the states before, norms less all"),
        Claim("target", "They reach the new domain as well, to three points.",
              "accuracy on the new domain, norms less all, and 0.03"),
        Claim("source", "And keep the old domain better.",
              "accuracy on the old domain, norms less all"),
    )  # fmt: skip
    null = Claim("same", "Tuned on more of the old domain, scopes do not differ there.",
                 "accuracy on the old domain, norms less all")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, tune by each scope, judge both domains."""
        x, label = digit_images(seed)
        net, steps = drawn(_Net, seed), TINY if tiny else TUNE
        tick("train")
        learn_labels(net, x[:FIT], label[:FIT], steps=TINY if tiny else STEPS, seed=seed)
        found: dict[str, dict[str, float]] = {}
        for rule in RULES:
            tick(rule)
            found[rule] = _tuned(net, rule, 1 - x, x, label, seed, steps)
        same = {rule: _tuned(net, rule, x, x, label, seed, steps) for rule in ("norms", "all")}
        norms, every = found["norms"], found["all"]
        return {
            "drift": norms["CKA"] - every["CKA"],
            "target": norms["new"] - every["new"] + 0.03,
            "source": norms["old"] - every["old"],
            "same": same["norms"]["old"] - same["all"]["old"],
            **{f"{rule} | {k}": v for rule, row in found.items() for k, v in row.items()},
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


def _tuned(
    net: nn.Module, rule: str, target: Tensor, old: Tensor, label: Tensor, seed: int, steps: int
) -> dict[str, float]:
    """Return accuracy on both domains and how alike the states are to those before."""
    own = drawn(_Net, seed)
    own.load_state_dict(net.state_dict())
    new, truth = target[FIT : FIT + MORE], label[FIT : FIT + MORE]
    word, k = RULES[rule]
    with Scope(word, k=k).on(own) as moving:  # pyright: ignore[reportArgumentType]
        weights = [p for p in own.parameters() if p.requires_grad]
        minimise(
            lambda rows: cross_entropy(own(new[rows]), truth[rows]),
            weights, MORE, steps=steps, seed=seed,
        )  # fmt: skip
        share = moving.share
    held = slice(FIT + MORE, None)
    with torch.no_grad():
        before, after = net.states(old[held]), own.states(old[held])  # pyright: ignore
        right = {
            name: float((own(x[held]).argmax(1) == label[held]).double().mean())
            for name, x in (("new", target), ("old", old))
        }
    return {**right, "CKA": float(cka(before, after).value), "share moved": share}
