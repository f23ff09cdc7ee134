"""Translation between two domains of pictures by swapped codes of content and style.

Bright digits on black, and dark digits on a bright, shaded ground; no picture is in both domains.
"""

from typing import final

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from sonde_studies._domain_swaps import (
    Arm,
    Codes,
    World,
    brighter,
    fitted,
    judge_of,
    likeness,
    partners,
    world,
)
from sonde_studies._layers import probed
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, PROBE, STEPS, TINY = 1_200, 300, 400, 10
ARMS = {
    "whole": Arm(),
    "signed edges": Arm(signs=True),
    "no swaps": Arm(swaps=False),
    "read once": Arm(again=False),
    "no adversary": Arm(adversary=False),
}


@final
class SwappedCodesStudy(Study):
    """Encoders of content and style that are trained on swapped pictures, less one part each."""

    name = "swapped-codes"
    title = "does a picture keep its digit and change its domain if codes are swapped?"
    paper = "tan2024ct2xgan"
    fidelity = (
        "two domains without pairs; the paper has a third one with pairs, and a pose; the "
        "adversary on the content is added here; nets that saw real pictures judge"
    )
    data = "digits of 8 x 8 pixels in two domains; 1,200 to train on, 597 to judge"
    claims = (
        Claim("domain", "Nine in ten swapped pictures have the domain whose code they got.",
              "accuracy of the domain that a judge sees, less 0.9"),
        Claim("content", "Eight in ten swapped pictures show the digit whose code they got.",
              "accuracy of the digit that a judge sees, less 0.8"),
        Claim("shade", "They have the shading of the picture whose style code they got.",
              "mean cosine between both directions, pictures of domain 1", above=0.5),
        Claim("signs", "A content code that cannot see an edge's sign keeps more digits.",
              "accuracy of the digit, without less with signs",
              arms=("whole", "signed edges")),
        Claim("swaps", "Training on swapped pictures makes them more like the true translation.",
              "correlation of pixels with the same picture in the other domain, with less "
              "without, in half of the updates: no critic learns",
              arms=("whole", "no swaps")),
        Claim("again", "Codes that are read again make them more like it.",
              "correlation of pixels with the same picture in the other domain, with less without",
              arms=("whole", "read once")),
        Claim("adversary", "An adversary on the content code makes them more like it.",
              "correlation of pixels with the same picture in the other domain, with less without",
              arms=("whole", "no adversary")),
        Claim("hidden", "With the adversary a probe of single places reads the domain less often.",
              "accuracy of a linear probe, without less with",
              arms=("whole", "no adversary")),
    )  # fmt: skip
    null = Claim("leak", "The digit of the picture whose style they got is there by chance alone.",
                 "share that shows the digit of the style code", above=0.1)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train judges and each arm, and judge swapped pictures."""
        seen, steps = world(seed), TINY if tiny else STEPS
        fit, held = seen[:FIT], seen[FIT:]
        tick("judges")
        judges = {
            kind: judge_of(fit.x, truth, n, seed + 77, steps)
            for kind, truth, n in (("digit", fit.label, 10), ("domain", fit.domain, 2))
        }
        found = dict[str, float]()
        for name, arm in ARMS.items():
            tick(name)
            net = fitted(fit.x, fit.domain, arm, seed, steps)
            found |= {f"{kind} | {name}": v for kind, v in _judged(net, judges, held, seed).items()}

        def gain(kind: str, without: str) -> float:
            return found[f"{kind} | whole"] - found[f"{kind} | {without}"]

        twin = "swapped, likeness"
        return {
            "domain": found["swapped, domain | whole"] - 0.9,
            "content": found["swapped, digit | whole"] - 0.8,
            "shade": found["swapped, cosine of shading | whole"],
            "signs": gain("swapped, digit", "signed edges"),
            "swaps": gain(twin, "no swaps"),
            "again": gain(twin, "read once"),
            "adversary": gain(twin, "no adversary"),
            "hidden": -gain("probe of the domain", "no adversary"),
            "leak": found["swapped, digit of the style code | whole"],
            **found,
        }


@torch.no_grad()
def _judged(net: Codes, judges: dict[str, nn.Module], held: World, seed: int) -> dict[str, float]:
    """Return how often judges see the content code's digit and the style code's domain."""
    draw = torch.Generator().manual_seed(seed)
    content, style = net.content(held.x), net.style(held.x, held.domain)
    order = {
        "rebuilt": torch.arange(len(style)),
        "swapped": partners(held.domain, draw),
        "within": partners(held.domain, draw, other=False),
    }
    at, places = content[0, 0].numel(), content.movedim(1, -1).flatten(0, 2)
    found = {"probe of the domain": probed(places, held.domain.repeat_interleave(at), PROBE * at)}
    for case, x in (("real", held.x), ("true translation", held.twin)):
        right = judges["digit"](x).argmax(1) == held.label
        found[f"{case}, digit"] = float(right.double().mean())
    for case, rows in order.items():
        made, domain = net.picture(content, style[rows]), held.domain[rows]
        said = {kind: judge(made).argmax(1) for kind, judge in judges.items()}
        for kind, judge, truth in (
            ("digit", "digit", held.label),
            ("digit of the style code", "digit", held.label[rows]),
            ("domain", "domain", domain),
        ):
            found[f"{case}, {kind}"] = float((said[judge] == truth).double().mean())
        same = cosine_similarity(brighter(made), held.toward[rows])[domain == 1]
        found[f"{case}, cosine of shading"] = float(same.mean())
        found[f"{case}, likeness"] = likeness(made, held.twin if case == "swapped" else held.x)
    return found
