"""Scores that rank blocks for quantisation: correlation, pruning and the gradient."""

from typing import final

from sonde_studies._bit_orders import BLOCKS, BY_LOT, rounded_net
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick


@final
class BitsByScoreStudy(Study):
    """Blocks rounded in the order of three scores, and in the order of their single costs."""

    name = "bits-by-score"
    title = "does a first-order score order layers for mixed precision better than chance?"
    paper = "nanda2024cptquant"
    fidelity = (
        "the scores are those of BitAllocation, reconstructed from their names: losses are of "
        "answers drawn from the model; blocks of small nets in place of language models"
    )
    data = "digits: residual nets of seven blocks, 1,000 rows to learn from, 797 to judge"
    claims = (
        Claim("taylor", "In the order of gradient times change, demotion costs less than chance.",
              "mean divergence of all orders less that of the order, as a share of the former",
              premise="not the last",
              arms=("taylor", "all orders")),
        Claim("correlation", "In the order of canonical correlations of input and output.",
              "mean divergence of all orders less that of the order, as a share of the former",
              premise="not the last",
              arms=("correlation", "all orders")),
        Claim("pruning", "In the order of divergence without the smallest tenth of the weights.",
              "mean divergence of all orders less that of the order, as a share of the former",
              premise="not the last",
              arms=("pruning", "all orders")),
        Claim("taylor best", "The gradient orders better than the correlation.",
              "difference of both shares",
              arms=("taylor", "correlation")),
        Claim("not the last", "The order by gradient times change costs less than to demote the "
              "last blocks first.",
              "difference of both shares",
              arms=("taylor", "last blocks first")),
        Claim("enough", "It loses at most a tenth against each block's divergence, measured on "
              "the rows that judge.",
              "share of the gradient less that of the divergence alone, and 0.1",
              arms=("taylor", "alone")),
    )  # fmt: skip
    null = BY_LOT

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Round every subset of a net's blocks, and compute each score's cost as an order."""
        tick("all sets of blocks")
        net = rounded_net(seed, tiny)
        usual = float(net.areas().mean())
        scores = {
            "taylor": net.scores("taylor"),
            "correlation": net.scores("cca"),
            "pruning": net.scores("prune"),
            "alone": net.alone(),
        }
        orders = {name: net.order(one) for name, one in scores.items()}
        gain = {name: 1 - net.area(order) / usual for name, order in orders.items()}
        last_first = list(range(BLOCKS))[::-1]
        for name in (*orders, "all orders", "last blocks first"):
            note_for(name, rows=len(net.fresh))
        return {
            **gain,
            "taylor best": gain["taylor"] - gain["correlation"],
            "enough": gain["taylor"] - gain["alone"] + 0.1,
            "not the last": gain["taylor"] - 1 + net.area(last_first) / usual,
            "by lot": 1 - net.by_lot(seed) / usual,
            **{f"last blocks first | {n}": float(o == last_first) for n, o in orders.items()},
        }
