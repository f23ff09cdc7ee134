"""Test whether the attack detects memorised rows, and only those.

Nets on digits with wrong labels for three rows in ten, which can only be learned by heart: trained
long, trained briefly, and on ten times as many rows. It shows what the attack sees, not how much
large models memorise.
"""

from typing import final

import torch
from torch import Tensor

from sonde import Model
from sonde_studies._recipe_data import items_of, learned, mlp, shuffled_digits
from sonde_studies.arms import note_sum, part
from sonde_studies.recipes.did_it_memorise import did_it_memorise
from sonde_studies.study import Claim, Figures, Study, Tick

SEEN, HELD, LONG, SHORT, NOISE = 150, 450, 400, 25, 0.3


@final
class DidItMemoriseStudy(Study):
    """A digit net with noisy labels, trained long or stopped early, with or without reference."""

    name = "did-it-memorise"
    title = "does a low loss give training rows away, and only where they were memorised?"
    fidelity = "the plain attack by loss and its calibrated form; no shadow models"
    data = "digits: 150 to train on, 450 held out, 450 for the reference; 30 % of labels are wrong"
    claims = (
        Claim("long", "After long training the attack tells.", "AUROC less 0.5, 400 steps"),
        Claim(
            "early",
            "Stopped early, the net gives less away.",
            "AUROC after 400 steps less AUROC after 25",
            arms=("long", "short"),
        ),
        Claim(
            "reference",
            "Early, a reference of as many updates and parameters, on 450 rows of its own, makes "
            "the attack stronger.",
            "AUROC with a reference less without, 25 steps",
            arms=("short, reference", "short"),
        ),
    )
    null = Claim(
        "held out", "Rows that the net never saw are not told from others.", "AUROC", above=0.5
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, attack, and attack with held-out rows on both sides as the null."""
        x, label = shuffled_digits(seed)
        noisy = _noisy(label, seed)
        tick("train")
        steps = {"long": 60 if tiny else LONG, "short": SHORT}
        nets = dict[str, Model]()
        for net, n in steps.items():
            with part(net):
                nets[net] = learned(mlp(64), x[:SEEN], noisy[:SEEN], seed, n)
        rest = slice(SEEN + HELD, SEEN + 2 * HELD)
        with part("reference"):
            other = learned(mlp(64), x[rest], noisy[rest], seed + 50, SHORT)
        note_sum("short, reference", ["short", "reference"])
        seen = items_of(x[:SEEN], noisy[:SEEN])
        held = items_of(x[SEEN : SEEN + HELD], noisy[SEEN : SEEN + HELD])
        new = items_of(x[-SEEN:], noisy[-SEEN:])
        tick("attack")

        def area(net: str, one: list[dict[str, Tensor]], **options: object) -> float:
            options = {"progress": False, **options}
            return float(did_it_memorise(nets[net], one, held, **options).value)  # pyright: ignore

        found = {net: area(net, seen) for net in nets}
        aided = {net: area(net, seen, reference=other) for net in nets}
        return {
            "long": found["long"] - 0.5,
            "early": found["long"] - found["short"],
            "reference": aided["short"] - found["short"],
            "held out": area("long", new),
            **{f"AUROC | {net}": value for net, value in found.items()},
            **{f"AUROC | {net}, reference": value for net, value in aided.items()},
        }


def _noisy(label: Tensor, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(label), generator=draw) < NOISE
    return torch.where(wrong, torch.randint(0, 10, label.shape, generator=draw), label)
