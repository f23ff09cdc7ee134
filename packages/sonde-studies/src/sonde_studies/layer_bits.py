"""Blocks that tolerate two bits: those with small updates, or with many large weights."""

from typing import final

from sonde_studies._bit_orders import BLOCKS, BY_LOT, rounded_net
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick


@final
class LayerBitsStudy(Study):
    """Blocks rounded from eight bits to two, in the order of two scores and in all orders."""

    name = "layer-bits"
    title = "do two scores of layers say which of them stand two bits?"
    paper = "dumitru2024layerwise"
    fidelity = (
        "both scores are those of BitAllocation, summed over the two layers of a block; rounding "
        "to the nearest of a group in place of GPTQ"
    )
    data = "digits: residual nets of seven blocks, 1,000 rows to learn from, 797 to judge"
    claims = (
        Claim("moved",
              "Blocks that move their state least, on 1,000 rows, are demoted at less than random"
              " cost.",
              "mean divergence of all orders less that of the order, as a share of the former",
              premise="not the last",
              arms=("moved", "all orders")),
        Claim("large weights", "Blocks with the most large weights are.",
              "mean divergence of all orders less that of the order, as a share of the former",
              premise="not the last",
              arms=("large weights", "all orders")),
        Claim("two of seven", "Four of seven blocks by the first score cost less than half a "
              "point of accuracy.", "0.005 less the loss of accuracy"),
        Claim("not the last",
              "The order by how far blocks move their state, read on 1,000 rows, costs less than "
              "to demote the last blocks first.",
              "difference of both shares",
              arms=("moved", "last blocks first")),
        Claim("room", "An order exists that halves the cost of a random one.",
              "mean divergence of all orders less that of the best, which 398 other rows chose, "
              "as a share, less 0.5",
              arms=("best order", "all orders")),
    )  # fmt: skip
    null = BY_LOT

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Round every set of blocks of a net, and read off the cost of each order."""
        tick("all sets of blocks")
        net = rounded_net(seed, tiny)
        areas = net.areas()
        usual = float(areas.mean())
        moved = net.order(net.scores("lim"))
        large = net.order(net.scores("zd"))
        last = net.area(range(BLOCKS - 1, -1, -1))
        best, all_of_half = net.best_area()
        read = {"moved": len(net.x), "best order": len(net.fresh) // 2}
        for order in ("moved", "large weights", "last blocks first", "best order", "all orders"):
            note_for(order, rows=read.get(order, 0))
        lost = net.accuracy[frozenset()] - net.accuracy[frozenset(moved[:4])]
        return {
            "moved": 1 - net.area(moved) / usual,
            "large weights": 1 - net.area(large) / usual,
            "two of seven": 0.005 - lost,
            "room": 0.5 - best / all_of_half,
            "not the last": (last - net.area(moved)) / usual,
            "by lot": 1 - net.by_lot(seed) / usual,
            "accuracy, all at eight bits": net.accuracy[frozenset()],
            "divergence, all at two bits": net.kl[frozenset(range(BLOCKS))],
            "reversed order of the first score": 1 - net.area(moved[::-1]) / usual,
            "last blocks first": 1 - last / usual,
            "last blocks first | first score": float(moved == list(range(BLOCKS))[::-1]),
            "best order": 1 - best / all_of_half,
            "best order on the rows that judge": 1 - float(areas.min()) / usual,
        }
