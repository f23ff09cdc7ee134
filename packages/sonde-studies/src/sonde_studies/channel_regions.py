"""Regions of channels that move together: do they say more of a scene than the mean over it.

Two digits side by side; the question is which is larger, and a small convolutional net knows the
digits.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.layers import StateGraph
from sonde.measure import UnitClusters
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

SIDE, CHANNELS, REGIONS, HIDDEN = 16, 32, 8, 24
FIT, SCENES, HELD, STEPS, TINY = 1_200, 2_000, 600, 500, 4


@final
class ChannelRegionsStudy(Study):
    """Maps of a frozen net as regions by correlation, by lot, and as their mean over places."""

    name = "channel-regions"
    title = "do regions of channels say more than their mean?"
    paper = "yang2022drag"
    fidelity = (
        "regions of the last maps by average linkage; the net is frozen, the graph is one layer"
    )
    data = "scenes of 16 x 16 with two digits; digits of test scenes are not those of training"
    claims = (
        Claim("coherent", "Regions lie closer together in the picture than channels by lot.",
              "Moran's I of maps, regions less groups by lot"),
        Claim("relation", "A graph over regions says more of the relation than the mean.",
              "accuracy of naming the larger digit, graph of regions less mean over places"),
        Claim("lot", "It says more with regions than with groups by lot.",
              "accuracy of naming the larger digit, regions less groups by lot"),
        Claim("graph", "It says more than the same head without the graph.",
              "accuracy of naming the larger digit, with less without a graph"),
    )  # fmt: skip
    null = Claim("lots", "Two draws of groups by lot say as much of the relation.",
                 "accuracy of naming the larger digit, difference of two draws")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the net, group its channels, and a head on each kind of group."""
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
        found: dict[str, float] = {}
        for arm, group in groups.items():
            tick(arm)
            nodes, judged = (_nodes(m, group) for m in (maps, others))
            found[arm] = _answered(nodes, larger, judged, asked, seed, steps, True)
        nodes, judged = (_nodes(m, regions) for m in (maps, others))
        found["no graph"] = _answered(nodes, larger, judged, asked, seed, steps, False)
        means = [m.mean((2, 3))[:, None] for m in (maps, others)]
        found["mean"] = _answered(means[0], larger, means[1], asked, seed, steps, False)
        order = {arm: _moran(_nodes(others, group)) for arm, group in groups.items()}
        return {
            "coherent": order["regions"] - (order["lot"] + order["another lot"]) / 2,
            "relation": found["regions"] - found["mean"],
            "lot": found["regions"] - (found["lot"] + found["another lot"]) / 2,
            "graph": found["regions"] - found["no graph"],
            "lots": found["lot"] - found["another lot"],
            **{f"accuracy | {arm}": v for arm, v in found.items()},
            **{f"Moran's I | {arm}": v for arm, v in order.items()},
        }


def _maps() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, CHANNELS, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def _scenes(x: Tensor, label: Tensor, seed: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return scenes, which digits each has, and whether the left digit is the larger."""
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


def _nodes(maps: Tensor, group: Tensor) -> Tensor:
    """Return the mean map of each group of channels: (scene, group, place)."""
    n = int(group.max()) + 1
    member = torch.nn.functional.one_hot(group, n).to(maps)
    return torch.einsum("nchw,cg->nghw", maps, member / member.sum(0)).flatten(2)


def _answered(
    x: Tensor, y: Tensor, held: Tensor, asked: Tensor, seed: int, steps: int, graph: bool
) -> float:
    """Return the accuracy of a head on nodes (scene, node, dim), with or without a graph."""
    _, n, dim = x.shape
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)

    def made() -> nn.Sequential:
        over = StateGraph(dim, "correlation", threshold=0.3, steps=2) if graph else nn.Identity()
        return nn.Sequential(
            over, nn.Flatten(), nn.Linear(n * dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )

    head = drawn(made, seed)

    def loss(rows: Tensor) -> Tensor:
        given = (x[rows] - mean) / spread
        return binary_cross_entropy_with_logits(head(given)[:, 0], y[rows])

    optimised = [p for p in head.parameters() if p.requires_grad]
    minimise(loss, optimised, len(x), steps=steps, seed=seed)
    with torch.no_grad():
        answer = head((held - mean) / spread)[:, 0] > 0
    return float((answer == asked.bool()).double().mean())


def _moran(nodes: Tensor) -> float:
    """Return Moran's I over neighbours of side and line, mean over maps that vary."""
    side = SIDE // 2
    rest = nodes - nodes.mean(2, keepdim=True)
    maps = rest.reshape(-1, side, side).double()
    total = maps.square().mean((1, 2))
    near = [
        (maps[:, 1:] * maps[:, :-1]).mean((1, 2)),
        (maps[..., 1:] * maps[..., :-1]).mean((1, 2)),
    ]
    varies = total > 1e-12
    return float(((near[0] + near[1]) / 2 / total.clamp(min=1e-12))[varies].mean())
