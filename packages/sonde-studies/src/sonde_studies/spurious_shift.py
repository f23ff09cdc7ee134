"""Test whether the context in a net's states predicts the loss of few-shot learners.

Six kinds of digits teach the net, each mostly in one of two colours; four others are learned from
five images each, all in one colour, and asked for in either.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.measure import anchor_shift, spurious_shift
from sonde_studies._layers import layers_of, plain_net, split, trained
from sonde_studies._separation import rank_correlation
from sonde_studies.arms import note_again
from sonde_studies.study import Claim, Figures, Study, Tick

AGREES = (0.5, 0.7, 0.9, 0.97, 1.0)
KNOWN, SHOTS, TASKS, STEPS, COPIES = 6, 5, 100, 600, 2


@final
class SpuriousShiftStudy(Study):
    """Nets trained with an increasing planted correlation of class and colour."""

    name = "spurious-shift"
    title = "does the share of context in the states say what few-shot learners lose?"
    paper = "zhang2024metacoco"
    fidelity = (
        "shares of variance, and cosines to anchors that are means of other images rather than "
        "embedded names, in each learner's own net rather than in one pretrained model; nearest "
        "class means as the learner; two colours in place of many backgrounds"
    )
    data = "scikit-learn's digits in one of two channels; a dense net of two layers, 64 wide"
    claims = (
        Claim(
            "grows",
            "Context has a larger share where kind and colour go together in training.",
            f"shift at {AGREES[-1]:.0%} less shift at {AGREES[0]:.0%}, new kinds, last layer",
            arms=("100% agree", "50% agree"),
        ),
        Claim(
            "loses",
            "Few-shot learners lose accuracy where the colour is another, without any correlation "
            "in training.",
            f"accuracy in the same colour less in the other, {AGREES[0]:.0%}",
            arms=("50% agree", "50% agree, other colour"),
        ),
        Claim(
            "loses more",
            "They lose more on nets that were taught with a correlation.",
            f"loss at {AGREES[-1]:.0%} less loss at {AGREES[0]:.0%}",
            arms=("100% agree", "50% agree"),
        ),
        Claim(
            "tells the loss",
            "A larger shift goes with a larger loss, over nets.",
            "rank correlation over ten nets",
        ),
        Claim(
            "anchors",
            "Cosines to anchors of contexts and concepts grow in the same way.",
            f"anchor shift at {AGREES[-1]:.0%} less at {AGREES[0]:.0%}, new kinds, last layer",
            arms=("100% agree", "50% agree"),
        ),
        Claim(
            "anchors tell",
            "A larger shift by anchors goes with a larger loss, over nets.",
            "rank correlation over ten nets",
        ),
    )
    null = Claim(
        "by lot",
        "Contexts by lot explain what chance explains.",
        "shift less its null",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each net, measure the shift on new classes, and learn from few examples."""
        shift: dict[float, list[float]] = {a: [] for a in AGREES}
        lost: dict[float, list[float]] = {a: [] for a in AGREES}
        anchored: dict[float, list[float]] = {a: [] for a in AGREES}
        chance: list[float] = []
        for agrees in AGREES:
            for copy in range(COPIES):
                tick(f"{agrees:.0%} agree")
                own = 10 * seed + copy
                net, new, kind = _taught(own, agrees, 60 if tiny else STEPS)
                draw = torch.Generator().manual_seed(own)
                colour = torch.randint(0, 2, (len(kind),), generator=draw)
                rows = layers_of(net, _coloured(new, colour))[-1]
                anchored[agrees].append(_by_anchors(rows, kind, colour))
                shift[agrees].append(float(spurious_shift(rows, kind, colour)))
                other = colour[torch.randperm(len(colour), generator=draw)]
                by_lot = spurious_shift(rows, kind, other)
                chance.append(float(by_lot) - float(torch.as_tensor(by_lot.null)))
                lost[agrees].append(_lost(net, new, kind, draw))
        mean = {
            (name, a): sum(v[a]) / COPIES
            for name, v in (("shift", shift), ("lost", lost), ("anchors", anchored))
            for a in v
        }
        first, last = AGREES[0], AGREES[-1]
        note_again("50% agree, other colour", "50% agree")
        return {
            "grows": mean["shift", last] - mean["shift", first],
            "loses": mean["lost", first],
            "loses more": mean["lost", last] - mean["lost", first],
            "tells the loss": rank_correlation(
                *([v for each in part.values() for v in each] for part in (shift, lost))
            ),
            "anchors": mean["anchors", last] - mean["anchors", first],
            "anchors tell": rank_correlation(
                *([v for each in part.values() for v in each] for part in (anchored, lost))
            ),
            "by lot": sum(chance) / len(chance),
            **{f"{name} | {a:.0%}": v for (name, a), v in mean.items()},
        }


def _taught(seed: int, agrees: float, steps: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a net trained on six classes, and images of the other four with labels."""
    d, draw = split(seed, 1797), torch.Generator().manual_seed(500 + seed)
    order = torch.randperm(10, generator=draw)
    place = order.argsort()[d.label]
    known = place < KNOWN
    label = place[known]
    turned = torch.rand(len(label), generator=draw) >= agrees
    x = _coloured(d.x[known], (label % 2) ^ turned.long())
    *_, net = trained(plain_net(seed, (64, 64), inputs=x.shape[1]), x, label, steps, seed)
    return net, d.x[~known], place[~known]


def _by_anchors(rows: Tensor, kind: Tensor, colour: Tensor) -> float:
    """Return the anchor shift of every second image; the means of the others are the anchors."""
    kinds, concept = torch.unique(kind, return_inverse=True)
    centred = rows - rows.mean(0)
    given, asked = centred[::2], centred[1::2]
    concepts = torch.stack([given[concept[::2] == k].mean(0) for k in range(len(kinds))])
    contexts = torch.stack([given[colour[::2] == c].mean(0) for c in (0, 1)])
    return anchor_shift(asked, concept[1::2], colour[1::2], concepts, contexts).value  # pyright: ignore


def _lost(net: nn.Sequential, x: Tensor, kind: Tensor, draw: torch.Generator) -> float:
    """Return the loss of accuracy of nearest class means on queries in the other colour."""
    kinds = torch.unique(kind)
    rows = [layers_of(net, _coloured(x, torch.full((len(x),), c)))[-1] for c in (0, 1)]
    gap = 0.0
    for _ in range(TASKS):
        home = torch.randint(0, 2, (len(kinds),), generator=draw).tolist()
        order = torch.randperm(len(x), generator=draw)
        mine = [order[kind[order] == k] for k in kinds]
        mean = torch.stack([rows[h][at[:SHOTS]].mean(0) for h, at in zip(home, mine, strict=True)])
        for i, (h, at) in enumerate(zip(home, mine, strict=True)):
            for colour, sign in ((h, 1.0), (1 - h, -1.0)):
                near = torch.cdist(rows[colour][at[SHOTS : SHOTS + 20]], mean).argmin(1)
                gap += sign * float((near == i).double().mean()) / len(kinds)
    return gap / TASKS


def _coloured(x: Tensor, colour: Tensor) -> Tensor:
    """Return images in the first or the second of two channels."""
    return torch.cat([x * (colour == 0)[:, None], x * (colour == 1)[:, None]], 1)
