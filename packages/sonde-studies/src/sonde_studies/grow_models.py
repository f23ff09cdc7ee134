"""Training that starts small: growth in width, by copies or template mixes, or in depth.

Digits, equal products for all arms; the loss on rows that trained nothing.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from sonde.train import Resize, TemplateBank
from sonde_studies._added_blocks import Deep, Train, at_once, one_alone, one_by_one, without_each
from sonde_studies._layers import loss
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies._specialists import specialists
from sonde_studies.arms import note_again, note_for, part
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, learn_labels

FIT, STEPS, TINY, SMALL, RATE = 1_000, 240, 8, 48, 1e-3
TEMPLATES = 4


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
        Claim("grown", "A net grown to twice its width has, after as many products in more "
              "steps, a lower loss than one from scratch.",
              "nats, from scratch less grown",
              arms=("grown", "scratch")),
        Claim("cycle", "A net that visits the small net, in more steps, and is mixed with itself "
              "has a lower loss than one from scratch.",
              "nats, from scratch less V-cycle",
              arms=("cycle", "scratch")),
        Claim("mixed", "Mixing with the big net helps beyond growing alone.",
              "nats, V-cycle without mixing less with",
              arms=("cycle", "not mixed")),
        Claim("templates", "A net that is grown by new mixes of its templates has a lower loss "
              "than one grown by random weights.",
              "nats, random new blocks less mixes of templates, which have 1.4 times the "
              "parameters",
              arms=("templates", "random blocks")),
        Claim("mixes", "And a lower one than from scratch, after more steps and with the "
              "parameters of the templates.",
              "nats, from scratch less mixes of templates",
              arms=("templates", "scratch")),
        Claim("one by one", "On a frozen embedding, blocks that are trained one by one on frozen "
              "ones, in as many steps and a third of the weights at a time, reach a lower loss "
              "than all at once.",
              "nats, all blocks at once less one by one",
              arms=("one by one", "at once")),
        Claim("each block", "Each block that is trained on frozen ones, with its parameters, "
              "lowers the loss more than as many steps without it.",
              "nats, without the new block less with, the least of two blocks",
              arms=("three blocks", "two blocks")),
        Claim("specialists", "The mean of the logits of two specialists on one frozen embedding is "
              "correct more often than a specialist without an error could be.",
              "accuracy of the mean, less the limit, the share of the larger half of the digits"),
        Claim("as one", "The mean of two, with twice the parameters, is correct as often as one "
              "expert that learned from all digits, to two points.",
              "accuracy of the mean less that of one, and 0.02",
              arms=("two specialists", "one expert")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 "accuracy, grown, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train in each way with the compute of ``STEPS`` steps of the large net."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        like = mlp(64, 2 * SMALL)
        dear = sum(p.numel() for p in like.parameters())
        cheap = sum(p.numel() for p in mlp(64, SMALL).parameters())

        def train(net: nn.Module, n: int, part: int) -> nn.Module:
            how: dict[str, Any] = {"steps": max(n, 1), "seed": seed + part, "rate": RATE}
            learn_labels(net, x[:FIT], label[:FIT], **how)
            return net

        tick("scratch")
        nets = {"scratch": train(_net(2 * SMALL, seed), steps, 0)}
        tick("grown")
        small = train(_net(SMALL, seed), (steps // 2) * dear // cheap, 1)
        wide = Resize("decoalesce").of(small, like=like)
        with torch.no_grad():
            same = float((wide(x) - small(x)).abs().max())
        nets["grown"] = train(wide, steps - steps // 2, 2)
        for name, share in (("cycle", 0.25), ("not mixed", 1.0)):
            tick(name)
            big = train(_net(2 * SMALL, seed), steps // 6, 3)
            low = Resize("coalesce").of(big, like=mlp(64, SMALL))
            train(low, (steps // 3) * dear // cheap, 4)
            new = Resize("decoalesce", interpolate=share).of(low, big, like=like)
            nets[name] = train(new, steps - steps // 6 - steps // 3, 5)
        tick("templates")
        nets |= _mixed(train, like, seed, (steps // 2) * dear // cheap, steps - steps // 2)
        tick("at once")
        nets["at once"] = at_once(train, steps // 2, seed)
        found = {arm: loss(net, x[FIT:], label[FIT:]) for arm, net in nets.items()}
        tick("blocks")
        way = steps // 2, seed, x[:4]
        with part("one by one"):
            falls = [loss(net, x[FIT:], label[FIT:]) for net in one_by_one(train, *way)]
        _note_blocks()
        without = [loss(net, x[FIT:], label[FIT:]) for net in without_each(train, *way)]
        found |= {f"{n} blocks": v for n, v in enumerate(falls, 1)}
        found |= {f"no block {n}, as long": v for n, v in enumerate(without, 2)}
        found["one block, as long as all"] = loss(one_alone(train, *way), x[FIT:], label[FIT:])
        merged = specialists(steps // 2, seed, x, label, FIT, RATE)
        upper = float((label[FIT:] >= 5).double().mean())
        tick("labels by lot")
        lots = by_lot(x, seed, ((steps // 2) * dear // cheap, steps - steps // 2))
        return {
            "grown": found["scratch"] - found["grown"],
            "cycle": found["scratch"] - found["cycle"],
            "mixed": found["not mixed"] - found["cycle"],
            "templates": found["random blocks"] - found["templates"],
            "mixes": found["scratch"] - found["templates"],
            "one by one": found["at once"] - falls[-1],
            "each block": min(a - b for a, b in zip(without, falls[1:], strict=True)),
            "specialists": merged["mean"] - max(upper, 1 - upper),
            "as one": merged["mean"] - merged["all rows"] + 0.02,
            "lots": lots,
            "largest change of a logit by growing": same,
            **{f"accuracy, specialists | {arm}": v for arm, v in merged.items()},
            **{f"nats | {arm}": v for arm, v in found.items()},
        }


def _note_blocks() -> None:
    """Note that a net with its last block took as many steps as one without it."""
    for depth, name in ((2, "two blocks"), (3, "three blocks")):
        note_again(name, "one by one")
        note_for(name, parameters=sum(p.numel() for p in Deep(depth).parameters()))


def by_lot(x: Tensor, seed: int, steps: tuple[int, int]) -> float:
    """Return the accuracy of a grown net on labels by lot, less that of chance.

    ``steps`` are those of the small net and of the grown one.
    """
    lots, net = labels_by_lot(x, 10, seed), _net(SMALL, seed)
    learn_labels(net, x[:FIT], lots[:FIT], steps=steps[0], seed=seed + 1, rate=RATE)
    wide = Resize("decoalesce").of(net, like=mlp(64, 2 * SMALL))
    learn_labels(wide, x[:FIT], lots[:FIT], steps=steps[1], seed=seed + 2, rate=RATE)
    return accuracy(wide, x[FIT:], lots[FIT:]) - 0.1


def _mixed(train: Train, like: nn.Module, seed: int, small: int, wide: int) -> dict[str, nn.Module]:
    """Return nets whose new blocks are mixes of trained templates, or random."""
    rule = TemplateBank(TEMPLATES, seed=seed)
    with part("small net of templates"):
        net = train(rule.of(_net(SMALL, seed)), small, 1)
    mixed, random = rule.grown(net, like), _net(2 * SMALL, seed + 500)
    old, new = rule.plain(net).state_dict(), random.state_dict()
    for name, weight in old.items():
        new[name][tuple(slice(n) for n in weight.shape)] = weight
    random.load_state_dict(new)
    nets = dict[str, nn.Module]()
    for arm, start in {"templates": mixed, "random blocks": random}.items():
        note_again(arm, "small net of templates")
        with part(arm):
            nets[arm] = train(start, wide, 2)
    return nets


def _net(width: int, seed: int) -> nn.Module:
    return drawn(lambda: mlp(64, width), seed)
