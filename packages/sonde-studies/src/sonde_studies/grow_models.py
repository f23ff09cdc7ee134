"""Training that starts small: growth in width, by copies or template mixes, or in depth.

Digits, equal products for all arms; the loss on rows that trained nothing.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.train import Resize, TemplateBank
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, SMALL, RATE = 1_000, 240, 8, 48, 1e-3
DEEP, TEMPLATES = 3, 4


@final
class GrowModelsStudy(Study):
    """A perceptron of 96 units from scratch, grown from 48, and by a V-cycle; added blocks."""

    name = "grow-models"
    title = "does a training that begins small reach a lower loss with as many products?"
    paper = "zou2024multilevel"
    fidelity = (
        "perceptrons in place of transformers; optimiser states begin anew at each change; making "
        "weights from templates is not counted"
    )
    data = "digits: 1,000 to train on, 797 to judge; a half or a third of the products in the small"
    claims = (
        Claim("grown", "A net grown from a small one has a lower loss than one from scratch.",
              "nats, from scratch less grown"),
        Claim("cycle", "So has one that visits the small net and is mixed with itself.",
              "nats, from scratch less V-cycle"),
        Claim("mixed", "Mixing with the big net helps beyond growing alone.",
              "nats, V-cycle without mixing less with"),
        Claim("templates", "Grown by new mixes of its templates it has a lower loss than by random "
              "weights.", "nats, random new blocks less mixes of templates"),
        Claim("mixes", "And a lower one than from scratch.",
              "nats, from scratch less mixes of templates"),
        Claim("one by one", "On a frozen embedding, blocks that are trained one by one on frozen "
              "ones reach a lower loss than all at once.",
              "nats, all blocks at once less one by one"),
        Claim("each block", "Each block that is added so lowers the loss.",
              "nats, least fall from one block to the next"),
    )  # fmt: skip
    null = Claim("same", "Growing by itself changes no answer.",
                 "largest difference of logits before and after")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train in each way with the compute of ``STEPS`` steps of the large net."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        like = _net(2 * SMALL)
        dear = sum(p.numel() for p in like.parameters())
        cheap = sum(p.numel() for p in _net(SMALL).parameters())

        def train(net: nn.Module, n: int, part: int) -> nn.Module:
            minimise(
                lambda rows: cross_entropy(net(x[rows]), label[rows]), net.parameters(), FIT,
                steps=max(n, 1), seed=seed + part, rate=RATE,
            )  # fmt: skip
            return net

        tick("scratch")
        found = {"scratch": _loss(train(drawn(lambda: _net(2 * SMALL), seed), steps, 0), x, label)}
        tick("grown")
        small = train(drawn(lambda: _net(SMALL), seed), (steps // 2) * dear // cheap, 1)
        wide = Resize("decoalesce").of(small, like=like)
        with torch.no_grad():
            same = float((wide(x) - small(x)).abs().max())
        found["grown"] = _loss(train(wide, steps - steps // 2, 2), x, label)
        for name, share in (("cycle", 0.25), ("not mixed", 1.0)):
            tick(name)
            big = train(drawn(lambda: _net(2 * SMALL), seed), steps // 6, 3)
            low = Resize("coalesce").of(big, like=_net(SMALL))
            train(low, (steps // 3) * dear // cheap, 4)
            new = Resize("decoalesce", interpolate=share).of(low, big, like=like)
            found[name] = _loss(train(new, steps - steps // 6 - steps // 3, 5), x, label)
        tick("templates")
        found |= _mixed(train, like, small=(steps // 2) * dear // cheap, wide=steps - steps // 2,
                        seed=seed, x=x, label=label)  # fmt: skip
        tick("one by one")
        falls = _stacked(train, steps // 2, seed, x, label)
        tick("at once")
        deep = drawn(lambda: _Deep(DEEP), seed)
        deep.first.requires_grad_(False)
        found["at once"] = _loss(train(deep, steps // 2, 6), x, label)
        found |= {f"{n} blocks": v for n, v in enumerate(falls, 1)}
        return {
            "grown": found["scratch"] - found["grown"],
            "cycle": found["scratch"] - found["cycle"],
            "mixed": found["not mixed"] - found["cycle"],
            "templates": found["random blocks"] - found["templates"],
            "mixes": found["scratch"] - found["templates"],
            "one by one": found["at once"] - falls[-1],
            "each block": min(a - b for a, b in pairwise(falls)),
            "same": round(same, 3),
            **{f"nats | {arm}": v for arm, v in found.items()},
        }


class _Deep(nn.Module):
    """Residual blocks on an embedding."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(64, SMALL)
        self.blocks = nn.ModuleList(_Block() for _ in range(depth))
        self.head = nn.Linear(SMALL, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(SMALL), nn.Linear(SMALL, SMALL)
        self.down = nn.Linear(SMALL, SMALL)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(self.up(self.norm(h)).relu())


def _mixed(
    train: Callable[[nn.Module, int, int], nn.Module], like: nn.Module, *, small: int, wide: int,
    seed: int, x: Tensor, label: Tensor,
) -> dict[str, float]:  # fmt: skip
    """Return the losses of nets whose new blocks are mixes of trained templates, or random."""
    rule = TemplateBank(TEMPLATES, seed=seed)
    net = train(rule.of(drawn(lambda: _net(SMALL), seed)), small, 1)
    mixed, random = rule.grown(net, like), drawn(lambda: _net(2 * SMALL), seed + 500)
    old, new = rule.plain(net).state_dict(), random.state_dict()
    for name, part in old.items():
        new[name][tuple(slice(n) for n in part.shape)] = part
    random.load_state_dict(new)
    arms = {"templates": mixed, "random blocks": random}
    return {arm: _loss(train(start, wide, 2), x, label) for arm, start in arms.items()}


def _stacked(
    train: Callable[[nn.Module, int, int], nn.Module], steps: int, seed: int, x: Tensor,
    label: Tensor,
) -> list[float]:  # fmt: skip
    """Return the losses after each added block; only the block and the head are trained."""
    net, losses = drawn(lambda: _Deep(1), seed), list[float]()
    for depth in range(1, DEEP + 1):
        if depth > 1:
            net = Resize(depth="stack").of(net, like=_Deep(depth), inputs=x[:4])
        net.requires_grad_(False)
        for part in (net.blocks[-1], net.head):
            part.requires_grad_(True)
        losses.append(_loss(train(net, steps // DEEP, 6 + depth), x, label))
    return losses


def _net(width: int) -> nn.Sequential:
    parts = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


@torch.no_grad()
def _loss(net: nn.Module, x: Tensor, label: Tensor) -> float:
    return float(cross_entropy(net(x[FIT:]), label[FIT:]))
