"""One net and many definitions of normal, given at test time.

A definition names the digits that are normal. One net is trained with some definitions and asked
others; another has learned to name digits, and was never told which of them are normal.
"""

from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.layers import TargetHead
from sonde.metrics import auroc
from sonde_studies._recipe_data import items_of, learned, mlp, shuffled_digits
from sonde_studies.arms import part
from sonde_studies.recipes.defined_anomaly import BLIND, NAMED, OTHER, REFIT, defined_anomaly
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, TINY, STEPS, FEW = 500, 20, 200, 200
CLASSES, NORMAL, KNOWN, ASKED, WIDTH = 10, 5, 6, 8, 64
UPDATES = 600
"""Of each net that is trained with definitions."""


@final
class DefinedAnomalyStudy(Study):
    """Definitions of five normal digits, for nets that were trained with other definitions."""

    name = "defined-anomaly"
    title = "can one net serve definitions of normal that change?"
    fidelity = "a definition is a set of classes with learned vectors, not a sentence"
    data = "digits: 500 to train on, 1,297 to judge and for the recipe"
    claims = (
        Claim("given", "Given new definitions, a net that was trained with eight others tells "
              "anomalies better than the net of the nearest of those.",
              "mean AUROC less that of the net of the known definition with most digits in "
              "common; each of the eight nets takes as many updates, of two thirds of the "
              "parameters",
              arms=("eight definitions", "a net for each known definition")),
        Claim("anew", "As well as nets that are trained anew for each new definition, to two "
              "points.",
              "mean AUROC less that of nets trained on its labels, each with as many updates, of "
              "two thirds of the parameters, and 0.02",
              arms=("eight definitions", "a net for each new definition")),
        Claim("unseen", "A net that only names digits loses no more than five points if it "
              "never saw four of them.",
              "mean AUROC of a net of six digits (three fifths of the rows) less that of a net of"
              " ten, and 0.05",
              arms=("six digits", "ten digits")),
    )  # fmt: skip
    null = Claim("other", "The definition of another question tells nothing on average.",
                 "mean AUROC", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train nets with definitions, then run the recipe on two nets without."""
        x, label = shuffled_digits(seed)
        rest = slice(FIT, FIT + FEW if tiny else None)
        tick("definitions")
        guided = _guided(x, label, rest, seed, TINY if tiny else UPDATES)
        items, found = items_of(x[rest], label[rest]), dict[str, dict[str, float]]()
        for name, few in (("ten digits", CLASSES), ("six digits", KNOWN)):
            tick(name)
            own = label[:FIT] < few
            net = learned(mlp(64), x[:FIT][own], label[:FIT][own], seed, TINY if tiny else STEPS)
            answer = defined_anomaly(
                net, items, site="3", definitions=16, seed=seed, progress=False
            )
            found[name] = {
                arm: float(answer.facts[f"mean, {arm}"]) for arm in (NAMED, BLIND, REFIT, OTHER)
            }
        ten = found["ten digits"]
        return {
            "given": guided["new"] - guided["nearest"],
            "anew": guided["new"] - guided["anew"] + 0.02,
            "unseen": found["six digits"][NAMED] - ten[NAMED] + 0.05,
            "other": ten[OTHER],
            **{f"definitions | {arm}": v for arm, v in guided.items()},
            **{f"{name} | {arm}": v for name, row in found.items() for arm, v in row.items()},
        }


class _Guided(nn.Module):
    """Score how much nearer rows are to classes outside a definition than to classes inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.vectors = mlp(64, WIDTH, WIDTH), nn.Parameter(torch.randn(CLASSES, WIDTH))
        self.head = TargetHead(WIDTH, CLASSES, temperature=0.1, project=False)

    def forward(self, x: Tensor, own: Tensor) -> Tensor:
        near = self.head(self.body(x), self.vectors)
        outside = near.masked_fill(own, -torch.inf).logsumexp(1)
        return outside - near.masked_fill(~own, -torch.inf).logsumexp(1)


def _guided(x: Tensor, label: Tensor, rest: slice, seed: int, steps: int) -> dict[str, float]:
    """Return mean AUROCs of new definitions; also of known ones, and after half of those."""
    draw = np.random.default_rng(seed)
    sets = dict[frozenset[int], None]()
    while len(sets) < 2 * ASKED:
        sets[frozenset(draw.permutation(CLASSES)[:NORMAL].tolist())] = None
    own = torch.tensor([[c in normal for c in range(CLASSES)] for normal in sets])
    known, asked = own[:ASKED], own[ASKED:]

    def trained(net: nn.Module, given: Tensor) -> nn.Module:
        lots = torch.Generator().manual_seed(seed)

        def loss(rows: Tensor) -> Tensor:
            normal = given[torch.randint(len(given), (len(rows),), generator=lots)]
            wrong = ~normal.gather(1, label[rows, None]).squeeze(1)
            score = net(x[rows], normal) if isinstance(net, _Guided) else net(x[rows]).squeeze(1)
            return binary_cross_entropy_with_logits(score, wrong.float())

        minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
        return net

    @torch.no_grad()
    def told(net: nn.Module, normal: Tensor) -> float:
        many = normal.expand(len(x[rest]), CLASSES)
        score = net(x[rest], many) if isinstance(net, _Guided) else net(x[rest]).squeeze(1)
        return float(auroc(score.numpy(), (~normal[label[rest]]).numpy(), resamples=2).value)

    def alone(normal: Tensor) -> nn.Module:
        return trained(drawn(lambda: mlp(64, n_classes=1), seed), normal[None])

    with part("eight definitions"):
        net = trained(drawn(_Guided, seed), known)
    with part("four definitions"):
        half = trained(drawn(_Guided, seed), known[: ASKED // 2])
    with part("a net for each known definition"):
        each = [alone(normal) for normal in known]
    with part("a net for each new definition"):
        anew = [alone(normal) for normal in asked]
    nearest = [each[int((known == normal).sum(1).argmax())] for normal in asked]
    found = {
        "new": [told(net, normal) for normal in asked],
        "known": [told(net, normal) for normal in known],
        "new, of four known": [told(half, normal) for normal in asked],
        "nearest": [told(one, normal) for one, normal in zip(nearest, asked, strict=True)],
        "anew": [told(one, normal) for one, normal in zip(anew, asked, strict=True)],
    }
    return {arm: float(np.mean(values)) for arm, values in found.items()}
