"""How alike the channels of a map are behind waves, and behind ordinary channels.

Simulated: the grids of ``locality``, read through gated branches of two dilations.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.layers import WaveChannels
from sonde_studies.locality import FAINT, HELD, rows_of, trained_net
from sonde_studies.study import Claim, Figures, Study, Tick

FEW, MANY, STEPS, TINY = 50, 800, 300, 15
ARMS = ("waves", "plain waves")


@final
class AlikeChannelsStudy(Study):
    """Nets with a layer of waves or of ordinary channels, by their channels on new rows."""

    name = "alike-channels"
    title = "do waves make the channels of a map less alike?"
    paper = "spartan2025"
    fidelity = "one layer of four channels behind one dilated layer; parameters differ by 5 %"
    data = "simulated: a 2 x 2 pattern of the class's sign at one place of a 6 x 6 grid, and noise"
    claims = (
        Claim("few", "With few rows to learn from, the map's channels are less alike behind waves "
              "than behind ordinary channels.",
              "mean absolute correlation of two channels at 50 rows, ordinary channels less waves "
              "of as many parameters", arms=("plain waves, 50 rows", "waves, 50 rows")),
        Claim("many", "So they are with many rows.",
              "mean absolute correlation of two channels at 800 rows, ordinary channels less "
              "waves of as many parameters", arms=("plain waves, 800 rows", "waves, 800 rows")),
        Claim("rank", "The hidden channels of the layer fill more of their directions.",
              "share of directions, the participation ratio of hidden channels over their number, "
              "waves less ordinary channels of as many parameters, at 800 rows",
              arms=("waves, 800 rows", "plain waves, 800 rows")),
    )  # fmt: skip
    null = Claim("noise", "Without a signal waves say nothing.",
                 "accuracy of waves at 50 rows", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both nets on few rows and on many, and one without a signal."""
        steps = TINY if tiny else STEPS
        alike, rank, right = dict[str, float](), dict[str, float](), dict[str, float]()
        x = rows_of(HELD, 2 * seed + 1, FAINT)[0]
        for kind in ARMS:
            for n in (FEW, MANY):
                arm = f"{kind}, {n} rows"
                tick(arm)
                net, right[arm] = trained_net(kind, n, seed, steps, FAINT)
                alike[arm], rank[arm] = channels_of(net, x)
        tick("noise")
        few, many = ({kind: f"{kind}, {n} rows" for kind in ARMS} for n in (FEW, MANY))
        return {
            "few": alike[few["plain waves"]] - alike[few["waves"]],
            "many": alike[many["plain waves"]] - alike[many["waves"]],
            "rank": rank[many["waves"]] - rank[many["plain waves"]],
            "noise": trained_net("waves", FEW, seed, steps, 0.0)[1],
            **{f"correlation | {arm}": v for arm, v in alike.items()},
            **{f"share of directions | {arm}": v for arm, v in rank.items()},
            **{f"accuracy | {arm}": v for arm, v in right.items()},
        }


@torch.no_grad()
def channels_of(net: nn.Sequential, x: Tensor) -> tuple[float, float]:
    """Return how alike the channels behind the layer of waves are, and the rank of those in it."""
    at = next(i for i, layer in enumerate(net) if isinstance(layer, WaveChannels))
    hidden = list[Tensor]()
    hook = net[at].out.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))  # pyright: ignore
    behind = net[: at + 1](x)
    hook.remove()
    return likeness(behind), filled(hidden[0])


def likeness(maps: Float[Tensor, "row channel *place"]) -> float:
    """Return the mean absolute correlation of two channels, over rows and places.

    1 if each channel is a multiple of another. A channel that is constant counts as a copy.
    """
    correlation = _channels(maps).corrcoef().abs().nan_to_num(1.0)
    n = len(correlation)
    return float((correlation.sum() - correlation.diagonal().sum()) / (n * (n - 1)))


def filled(maps: Float[Tensor, "row channel *place"]) -> float:
    """Return the participation ratio of the channels' correlations over the number of channels."""
    correlation = _channels(maps).corrcoef().nan_to_num(0.0)
    return float(correlation.diagonal().sum() ** 2 / correlation.square().sum()) / len(correlation)


def _channels(maps: Tensor) -> Tensor:
    return maps.movedim(1, 0).flatten(1).double()
