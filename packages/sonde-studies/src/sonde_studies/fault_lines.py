"""Test whether few concept changes turn a digit into its most likely other class."""

from typing import final

import torch

from sonde.explain import FaultLines
from sonde_studies._digits import encoder, shuffled
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick

N, NEW, WIDTH, STEPS = 1200, 80, 64, 150
CONCEPTS, FEW = 40, 3


@final
class FaultLinesStudy(Study):
    """Hidden directions of each digit, added or removed until the second answer wins.

    A change of one concept is held to the spread of its coefficients over the training rows, three
    standard deviations either way; random directions may move as far as the hidden ones.
    """

    name = "fault-lines"
    title = "do one to three concepts suffice to change the answer?"
    paper = "akula2022cxtom"
    fidelity = (
        "reconstructed from the idea; concepts are principal directions, not clusters of maps"
    )
    data = "digits; the 40 widest directions of a hidden layer of 64 units"
    claims = (
        Claim(
            "few suffice",
            "For more than 95% of the digits three concepts or fewer change the answer.",
            "share",
            above=0.95,
        ),
        Claim(
            "fewer than random directions",
            "A change of answer takes fewer concepts than random directions of the same layer that "
            "may move as far.",
            "difference of means of concepts",
            arms=("own", "random"),
        ),
        Claim(
            "near answers are nearer",
            "The second answer needs fewer concepts than the last.",
            "difference of means of concepts",
            arms=("own", "last"),
        ),
    )
    null = Claim(
        "reversed",
        "The same directions, narrowest first, need as many.",
        "difference of means of concepts",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net and search for changes."""
        draw = torch.Generator().manual_seed(seed)
        x, label = shuffled(draw)
        tick("training")
        net = encoder(x[:N], label[:N], WIDTH, seed, 20 if tiny else STEPS)
        n = 8 if tiny else NEW
        new = x[N : N + n]
        with torch.no_grad():
            hidden = net[1](net[0](x[:N]))
            logits = net(new)
        rank = logits.argsort(1, descending=True)
        widest = torch.linalg.svd(hidden - hidden.mean(0), full_matrices=False)[2][:CONCEPTS]
        chance = torch.linalg.qr(torch.randn(WIDTH, CONCEPTS, generator=draw))[0].T
        reach = 3 * ((hidden - hidden.mean(0)) @ widest.T).std(0).expand(n, -1)
        turned = reach.flip(1)
        tick("looking for changes")
        count: dict[str, torch.Tensor] = {}
        for name, bank, other, far in (
            ("own", widest, rank[:, 1], reach),
            ("random", chance, rank[:, 1], reach),
            ("reversed", widest.flip(0), rank[:, 1], turned),
            ("last", widest, rank[:, -1], reach),
        ):
            method = FaultLines(steps=40 if tiny else 120)
            with part(name):
                note(rows=n, parameters=CONCEPTS)
                found = method.explain(
                    net, new, concepts=bank, other=other, site="1", bounds=(-far, far)
                )
            count[name] = torch.as_tensor(found.value).clamp(max=CONCEPTS)
        return {
            "few suffice": float((count["own"] <= FEW).double().mean()),
            "fewer than random directions": float((count["random"] - count["own"]).mean()),
            "near answers are nearer": float((count["last"] - count["own"]).mean()),
            "reversed": float((count["reversed"] - count["own"]).mean()),
            **{f"concepts | {name}": float(v.mean()) for name, v in count.items()},
        }
