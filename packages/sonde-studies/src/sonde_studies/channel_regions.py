"""Test whether groups of correlated channels say more about a scene than groups by lot.

Two digits side by side; the question is which is larger, and a small convolutional net knows the
digits.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.measure import UnitClusters
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.parts.regions import Graph, coherence, nodes_of, read_by_head
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

SIDE, CHANNELS, REGIONS = 16, 32, 8
FIT, SCENES, HELD, STEPS, TINY = 1_200, 2_000, 600, 500, 4


@final
class ChannelRegionsStudy(Study):
    """Maps of a frozen net as groups by correlation, as random groups, and as one mean map."""

    name = "channel-regions"
    title = "do regions of channels say more than groups by lot?"
    paper = "yang2022drag"
    fidelity = (
        "regions of the last maps by average linkage; the net is frozen; two rounds of messages"
    )
    data = "scenes of 16 x 16 with two digits; digits of test scenes are not those of training"
    claims = (
        Claim("coherent", "Regions lie closer together in the picture than channels by lot.",
              "Moran's I of maps, regions less groups by lot",
              arms=("regions", "lot")),
        Claim("lot", "A graph over regions says more of the relation than one over groups by lot.",
              "accuracy of naming the larger digit, regions less groups by lot",
              arms=("regions", "lot")),
        Claim("graph", "It says more than the same head without the graph.",
              "accuracy of naming the larger digit, with less without a graph",
              arms=("regions", "no graph")),
        Claim("attention", "Self-attention between regions and a map, whose parameters the head "
              "lacks, say more than the head alone.",
              "accuracy, with attention less without a graph",
              arms=("attention", "no graph")),
        Claim("attends", "They say more than the graph of correlations, which has no such "
              "parameters.",
              "accuracy, attention less correlations",
              arms=("attention", "regions")),
    )  # fmt: skip
    null = Claim("answers by lot", "A graph over regions tells no answers by lot of other scenes.",
                 "accuracy less 0.5")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the net, group its channels, and train a head on each grouping."""
        x, label = shuffled_digits(seed)
        steps, n = (TINY, 40) if tiny else (STEPS, SCENES)
        parts = [(slice(FIT), n), (slice(FIT, None), n * HELD // SCENES)]
        (seen, said, larger), (held, _, asked) = (
            _scenes(x[rows], label[rows], seed + i, m) for i, (rows, m) in enumerate(parts)
        )
        tick("net")
        net = drawn(_maps, seed)
        naming = drawn(lambda: nn.Linear(CHANNELS, 10), seed + 1)

        def named(rows: Tensor) -> Tensor:
            return binary_cross_entropy_with_logits(
                naming(net(seen[rows]).mean((2, 3))), said[rows]
            )

        minimise(named, [*net.parameters(), *naming.parameters()], n, steps=steps, seed=seed)
        with torch.no_grad():
            maps, others = net(seen), net(held)
        rows = maps.movedim(1, 3).reshape(-1, CHANNELS)
        regions = UnitClusters(k=REGIONS).fit(rows).cluster
        groups = {"regions": regions}
        for i, arm in enumerate(("lot", "another lot")):
            draw = torch.Generator().manual_seed(seed + 10 + i)
            groups[arm] = regions[torch.randperm(CHANNELS, generator=draw)]

        def answered(x: Tensor, judged: Tensor, graph: Graph) -> float:
            logits = read_by_head(x, larger[:, None], judged, seed, steps, graph)[:, 0]
            return float(((logits > 0) == asked.bool()).double().mean())

        found: dict[str, float] = {}
        for arm, group in groups.items():
            tick(arm)
            nodes, judged = (nodes_of(m, group) for m in (maps, others))
            found[arm] = answered(nodes, judged, "correlation")
        tick("no graph")
        nodes, judged = (nodes_of(m, regions) for m in (maps, others))
        found["no graph"] = answered(nodes, judged, "")
        of_regions = nodes, judged
        tick("attention")
        found["attention"] = answered(nodes, judged, "attention")
        tick("mean map")
        one = torch.zeros_like(regions)
        nodes, judged = (nodes_of(m, one) for m in (maps, others))
        found["mean map"] = answered(nodes, judged, "")
        order = {
            arm: coherence(nodes_of(others, group), SIDE // 2) for arm, group in groups.items()
        }
        tick("answers by lot")
        return {
            "coherent": order["regions"] - (order["lot"] + order["another lot"]) / 2,
            "lot": found["regions"] - (found["lot"] + found["another lot"]) / 2,
            "graph": found["regions"] - found["no graph"],
            "attention": found["attention"] - found["no graph"],
            "attends": found["attention"] - found["regions"],
            "answers by lot": by_lot(*of_regions, seed, steps),
            **{f"accuracy | {arm}": v for arm, v in found.items()},
            **{f"Moran's I | {arm}": v for arm, v in order.items()},
        }


def by_lot(x: Tensor, held: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of a graph over nodes on answers by lot, less that of chance."""
    said, asked = (labels_by_lot(rows, 2, seed) for rows in (x, held))
    logits = read_by_head(x, said[:, None].float(), held, seed, steps, "correlation")[:, 0]
    return float(((logits > 0) == asked.bool()).double().mean()) - 0.5


def _maps() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, CHANNELS, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def _scenes(x: Tensor, label: Tensor, seed: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return scenes, the digits in each, and whether the left digit is larger."""
    draw = torch.Generator().manual_seed(seed)
    scenes, said, larger = torch.zeros(n, 1, SIDE, SIDE), torch.zeros(n, 10), torch.zeros(n)
    for i in range(n):
        kinds = torch.randperm(10, generator=draw)[:2]
        for side, kind in enumerate(kinds):
            of_kind = torch.nonzero(label == kind).flatten()
            image = x[of_kind[torch.randint(len(of_kind), (1,), generator=draw)]].reshape(8, 8)
            top = int(torch.randint(SIDE - 8 + 1, (1,), generator=draw))
            scenes[i, 0, top : top + 8, 8 * side : 8 * side + 8] = image
        said[i, kinds], larger[i] = 1.0, float(kinds[0] > kinds[1])
    return scenes, said, larger
