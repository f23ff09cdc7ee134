"""The part of a disparity that a correction within each client can reach.

Three planted worlds in which attribute, client and label depend on each other in different ways.
The limits of accuracy follow from what is planted; a net that is right lies beyond the first limit
and within the second.
"""

import math
from typing import final

import torch
from torch import Tensor

from sonde.measure import disparity_decomposition, fair_accuracy_limit
from sonde_studies._layers import plain_net, split, trained
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy

STRONG, STEPS, TRAIN, GAP = 0.9, 600, 1000, 0.05
WORLDS = ("clients differ", "clients oppose", "everywhere alike", "by lot")


@final
class DisparityDecompositionStudy(Study):
    """Odd and even digits of two clients, with a bright line as the sensitive attribute.

    *Clients differ*: the client goes with the label, and the attribute with the client alone.
    *Clients oppose*: the attribute goes with the label in one client and against it in the other.
    *Everywhere alike*: it goes with the label, and clients do not matter. One net learns from both.
    """

    name = "disparity-decomposition"
    title = "does a decomposition say which part of a disparity a client can see?"
    paper = "hamman2024disparity"
    fidelity = (
        "the parts as published; the limits of accuracy are on gaps of shares, where the original "
        "bounds mutual information; one net on all rows in place of federated averaging"
    )
    data = "scikit-learn's digits with planted attribute and client; a dense net of one layer"
    claims = (
        Claim(
            "redundant",
            "As planted, more than 95% of the overall disparity is redundant where clients differ.",
            "share of the overall disparity",
            above=0.95,
        ),
        Claim(
            "masked",
            "So is more than 95% of the local disparity masked where clients oppose each other.",
            "share of the local disparity",
            above=0.95,
        ),
        Claim(
            "unique",
            "And more than 95% of the overall disparity unique where clients do not matter.",
            "share of the overall disparity",
            above=0.95,
        ),
        Claim(
            "overall is dear",
            f"As planted, where clients differ, no rule with an overall gap of {GAP:g} reaches the "
            "net's accuracy.",
            "accuracy of the net less the limit",
        ),
        Claim(
            "local is cheap",
            f"As planted, the limit for a gap of {GAP:g} inside each client lies there above the "
            "net's accuracy.",
            "the limit less accuracy of the net",
        ),
    )
    null = Claim(
        "by lot",
        "An attribute by lot: predictions tell of it what chance tells.",
        "overall disparity less its null, nats",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net in each world and decompose its answers on new digits."""
        found: dict[str, float] = {}
        for world in WORLDS:
            tick(world)
            found |= {f"{part} | {world}": v for part, v in _world(world, seed, tiny).items()}
        differ, oppose, alike, lot = WORLDS
        return {
            "redundant": found[f"redundant | {differ}"] / found[f"overall | {differ}"],
            "masked": found[f"masked | {oppose}"] / found[f"local | {oppose}"],
            "unique": found[f"unique | {alike}"] / found[f"overall | {alike}"],
            "overall is dear": found[f"accuracy | {differ}"] - found[f"limit overall | {differ}"],
            "local is cheap": found[f"limit local | {differ}"] - found[f"accuracy | {differ}"],
            "by lot": found[f"overall | {lot}"] - found[f"null | {lot}"],
            **found,
        }


def _world(world: str, seed: int, tiny: bool) -> dict[str, float]:
    d, draw = split(seed, TRAIN), torch.Generator().manual_seed(100 + seed)
    label, label_test = d.label % 2, d.label_test % 2
    (z, _), (z_test, s_test) = (_drawn(world, y, draw) for y in (label, label_test))
    net = plain_net(seed, (64,), outputs=2)
    *_, net = trained(net, _marked(d.x, z), label, 60 if tiny else STEPS, seed)
    x_test = _marked(d.x_test, z_test)
    with torch.no_grad():
        said = net(x_test).argmax(1)
    found = disparity_decomposition(z_test, said, s_test, seed=seed)
    limits = {
        "overall": fair_accuracy_limit(z_test, s_test, label_test, overall=GAP),
        "local": fair_accuracy_limit(z_test, s_test, label_test, local=GAP),
    }
    return {
        "overall": float(found),
        "local": found.local,
        "unique": found.unique,
        "redundant": found.redundant,
        "masked": found.masked,
        "null": math.nan if found.null is None else float(found.null),
        "accuracy": accuracy(net, x_test, label_test),
        **{f"limit {name}": float(limit) for name, limit in limits.items()},
    }


def _drawn(world: str, label: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return attribute and client of each row."""
    turned = (torch.rand(2, len(label), generator=draw) > STRONG).long()
    lot = torch.randint(0, 2, (2, len(label)), generator=draw)
    if world == "clients differ":
        client = label ^ turned[0]
        return client ^ turned[1], client
    if world == "clients oppose":
        return label ^ lot[1] ^ turned[0], lot[1]
    return (label ^ turned[0] if world == "everywhere alike" else lot[0]), lot[1]


def _marked(x: Tensor, attribute: Tensor) -> Tensor:
    """Return images whose first line of pixels is bright where the attribute is 1."""
    return torch.cat([attribute[:, None].float().expand(-1, 8), x[:, 8:]], 1)
