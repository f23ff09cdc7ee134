"""Self-supervised learning from stacks of slices: prototypes, hidden slices, deformable attention.

A stack is one digit at eight sizes; the order of the sizes is the shape of the stack.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.train import Contrast, MaskedFeatures
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._slice_net import DIM, SliceNet
from sonde_studies._stacks import SHAPES, SIZES, digit_stacks, in_order, other_view
from sonde_studies.arms import note
from sonde_studies.parts.heads import linear_head, strongest_accuracy
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, BATCH, PROTOTYPES = 1_200, 300, 4, 32, 16
LABELLED = 100
ARMS = {
    "untrained": (),
    "slices": ("slices",),
    "stacks": ("stacks",),
    "slices and stacks": ("slices", "stacks"),
    "all": ("slices", "stacks", "hidden"),
    "deformable": ("slices", "stacks", "hidden"),
}


@final
class VolumesStudy(Study):
    """Prototypes of slices and of stacks, and hidden slices to rebuild, alone and together."""

    name = "volumes"
    title = "what do slices, stacks and hidden slices teach about a volume?"
    paper = "nguyen2023joint2d3d"
    fidelity = (
        "stacks of eight small slices in place of scans; three losses of equal weight; a layer of "
        "attention to all slices, and for one arm deformable attention of as many heads"
    )
    data = "digits at eight sizes, four orders, noise: 1,200 stacks, 100 with labels, 597 to judge"
    claims = (
        Claim("joint", "All together tell the shape of a stack better than slices alone.",
              "accuracy of a probe of the shape, all (2.4 times the parameters) less slices",
              arms=("all", "slices")),
        Claim("hidden", "Hidden slices that are rebuilt add to slices and stacks.",
              "accuracy of a probe of the shape, all less slices and stacks",
              arms=("all", "slices and stacks")),
        Claim("slice", "A single slice is named no worse than after slices alone, to two points.",
              "accuracy of the strongest of three probes of the digit on slices, all (2.4 times "
              "the parameters) less slices, and 0.02",
              arms=("all", "slices")),
        Claim("taught", "The shape is told better than by the untrained net.",
              "accuracy of a probe of the shape, all less untrained",
              arms=("all", "untrained")),
        Claim("deformable", "Deformable attention over slices tells the shape better than plain.",
              "accuracy of a probe of the shape, deformable, with fewer parameters by 7 %, less "
              "all",
              arms=("deformable", "all")),
    )  # fmt: skip
    null = Claim("shuffled", "Of stacks whose slices lie in an order by lot, no shape can be told.",
                 "accuracy of a probe of the shape, all, less 1/4")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same stacks, and once on shuffled ones."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        shape = torch.randint(len(SHAPES), (len(x),), generator=draw)
        stacks = digit_stacks(x, shape, draw)
        by_lot = in_order(stacks, torch.rand(stacks.shape[:2], generator=draw).argsort(1))
        steps, found = TINY if tiny else STEPS, dict[str, dict[str, float]]()
        for arm, terms in ARMS.items():
            tick(arm)
            net = _learned(stacks, terms, seed, steps, arm == "deformable")
            found[arm] = _probed(net, stacks, label, shape)
        tick("shuffled")
        null = _probed(_learned(by_lot, ARMS["all"], seed, steps), by_lot, label, shape)
        told = {arm: row["shape"] for arm, row in found.items()}
        slice_told = {arm: row["digit of a slice, strongest"] for arm, row in found.items()}
        return {
            "joint": told["all"] - told["slices"],
            "hidden": told["all"] - told["slices and stacks"],
            "slice": slice_told["all"] - slice_told["slices"] + 0.02,
            "taught": told["all"] - told["untrained"],
            "deformable": told["deformable"] - told["all"],
            "shuffled": null["shape"] - 1 / len(SHAPES),
            **{f"{arm} | {k}": v for arm, row in found.items() for k, v in row.items()},
        }


def _learned(
    stacks: Tensor, terms: tuple[str, ...], seed: int, steps: int, deformable: bool = False
) -> SliceNet:
    net = drawn(lambda: SliceNet(deformable), seed)
    slices, whole, hidden = losses = drawn(lambda: _losses(net), seed)

    def loss(rows: Tensor) -> Tensor:
        states, stack = zip(*(net(other_view(stacks[rows])) for _ in range(2)), strict=True)
        value, n, view = states[0].new_zeros(()), len(rows), torch.arange(2)
        if "slices" in terms:
            own = torch.cat(states).flatten(0, 1)
            value = value + slices(own, view=view.repeat_interleave(n * len(SIZES)))
        if "stacks" in terms:
            value = value + whole(torch.cat(stack), view=view.repeat_interleave(n))
        if "hidden" in terms:
            value = value + hidden(states[0], states[1])
        return value

    if not terms:
        note(updates=0)
    else:
        own = {id(p): p for part in (net, losses) for p in part.parameters()}
        minimise(loss, own.values(), _fit(stacks), steps=steps, seed=seed, batch=BATCH)
    return net


def _losses(net: SliceNet) -> nn.ModuleList:
    """Return the losses, with their own parameters initialised."""
    made = Contrast(prototypes=PROTOTYPES), Contrast(prototypes=PROTOTYPES)
    hidden = MaskedFeatures("embeddings", rebuilder=net.mixing)
    rows = torch.zeros(2 * PROTOTYPES, DIM)
    for contrast in made:
        contrast(rows, view=torch.arange(2).repeat_interleave(PROTOTYPES))
    hidden(torch.zeros(1, len(SIZES), DIM), torch.zeros(1, len(SIZES), DIM))
    return nn.ModuleList([*made, hidden])


def _fit(stacks: Tensor) -> int:
    return min(FIT, len(stacks) * 2 // 3)


def _probed(net: SliceNet, stacks: Tensor, label: Tensor, shape: Tensor) -> dict[str, float]:
    with torch.no_grad():
        slices, whole = net(stacks)
    n, middle = _fit(stacks), slices[:, 3]

    def probe(states: Tensor, truth: Tensor) -> float:
        head = linear_head().fit(states[:LABELLED].numpy(), truth[:LABELLED].numpy())
        return float(head.score(states[n:].numpy(), truth[n:].numpy()))

    return {
        "shape": probe(whole, shape),
        "digit": probe(whole, label),
        "digit of a slice": probe(middle, label),
        "digit of a slice, strongest": strongest_accuracy(
            torch.cat([middle[:LABELLED], middle[n:]]),
            torch.cat([label[:LABELLED], label[n:]]),
            LABELLED,
        ),
    }
