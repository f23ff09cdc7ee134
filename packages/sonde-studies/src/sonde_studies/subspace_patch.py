"""Test whether a direction trained to flip answers acts through the next layer's input.

A toy: a net that says one of two objects, as an input of its own tells it; that input passes an MLP
by, so the MLP need not carry it. What came out (ten seeds): no illusion. The trained direction in
the MLP's hidden layer gives every answer, and its readable part does all of it: a twentieth of its
squared length is read by nobody.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.explain import Das, Objective, SubspacePatch, SubspaceVerdict
from sonde_studies._chooser import HIDDEN, OBJECTS, WIDTH, Chooser, choice_pairs, trained_chooser
from sonde_studies.arms import note_again, note_for
from sonde_studies.study import Claim, Figures, Study, Tick

STEPS = 400


@final
class SubspacePatchStudy(Study):
    """A direction for ``which`` (the queried object), trained in an MLP and in the stream."""

    name = "subspace-patch"
    title = "does a trained direction work through its part that the next layer reads?"
    paper = "makelov2024illusion"
    fidelity = "a residual net in place of a language model; thresholds are ours"
    data = "pairs of objects at random; another draw for training than for tests"
    claims = (
        Claim(
            "gap in the MLP",
            "Along its readable part alone the direction in the hidden layer does much less.",
            "effect of the direction less that of its row part, share of the site's",
            above=0.25,
            premise="flips",
            arms=("search in the MLP", "row part, MLP"),
        ),
        Claim(
            "flips",
            "Premise: the trained direction gives the other answer more often than no patch.",
            "interchange accuracy on held-out pairs, less that without a patch",
            above=0.1,
            arms=("search in the MLP", "no patch"),
        ),
    )
    null = Claim(
        "random direction",
        "A random direction of the hidden layer moves nothing.",
        "effect of the direction, share of the site's",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net and both directions, and patch their parts."""
        tick("train")
        net = trained_chooser(seed, STEPS // 20 if tiny else STEPS)
        base, source, expected = choice_pairs(256, seed + 1000)
        das = Das(k=1, steps=10 if tiny else 300, rate=0.03, seed=seed)
        figures: dict[str, float] = {}
        reader = nn.Linear(WIDTH, HIDDEN)
        reader.weight = nn.Parameter(net.choose.weight[:, WIDTH:].detach())
        places = {"MLP": ("act", [net.down]), "stream": ("embed", [net.up, reader])}
        for name, (site, readers) in places.items():
            tick(f"search in the {name}")
            note_for("no patch", updates=0)
            found = das.fit(net, base, source, expected, site)
            assert found.subspace is not None
            note_again(f"row part, {name}", f"search in the {name}")
            judged = _judged(net, base, found.subspace[:, 0], readers, site, seed)
            site_effect = judged.effects["site"]
            share = {key: value / site_effect for key, value in judged.effects.items()}
            figures[f"gap in the {name}"] = share["direction"] - share["row part"]
            figures |= {
                f"effect of the direction | {name}": share["direction"],
                f"effect of the row part | {name}": share["row part"],
                f"effect of a random direction | {name}": share["random"],
                f"unseen share of the length | {name}": judged.null_share,
                f"d' of the row part | {name}": judged.separation[0],
                f"called illusory | {name}": float(judged.verdict == "illusory"),
                f"interchange accuracy | {name}": float(found),
            }
            if name == "MLP":
                figures["random direction"] = share["random"]
                figures["flips"] = float(found) - found.unpatched
        return figures


def _judged(
    net: Chooser,
    base: Tensor,
    direction: Tensor,
    readers: list[nn.Linear],
    site: str,
    seed: int,
) -> SubspaceVerdict:
    """Return the verdict on pairs that differ only in the query."""
    source = torch.cat([base[:, :-1], -base[:, -1:]], 1)
    objects = base[:, : 2 * OBJECTS].unflatten(1, (2, OBJECTS)).argmax(2)
    asked = (source[:, -1] > 0).long()
    goal = Objective(
        "margin",
        target=objects.gather(1, asked[:, None])[:, 0],
        other=objects.gather(1, 1 - asked[:, None])[:, 0],
    )
    weights = [layer.weight.detach() for layer in readers]
    return SubspacePatch(seed=seed).explain(
        net, source, corrupt=base, direction=direction, readers=weights, objective=goal, site=site
    )
