"""Recurrent nets whose summed inputs have a layer norm, a norm of length alone, or no norm.

``recurrent_range`` trains one of them and measures the sums before the norm.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, rms_norm

from sonde.layers import ConditionalNorm
from sonde_studies.worlds.learning import accuracy, drawn, minimise

FIT, DIM, PIECE = 1_000, 32, 4
EPS, KICK = 1e-5, 0.01
Norm = Literal["none", "length", "layer"]


class RecurrentNet(nn.Module):
    """A recurrent net of rectified units whose summed inputs are normalised, or only scaled."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.first, self.back = nn.Linear(PIECE, DIM), nn.Linear(DIM, DIM, bias=False)
        nn.init.normal_(self.back.weight, std=(2 / DIM) ** 0.5)
        self.norm = ConditionalNorm(DIM) if norm == "layer" else _Scale(norm == "length")
        self.head = nn.Linear(DIM, 10)

    def sums(
        self, x: Float[Tensor, "row pixel"], kick: Float[Tensor, "row dim"] | None = None
    ) -> Float[Tensor, "step row dim"]:
        """Return the summed inputs of each step, as they are before the norm.

        Parameters
        ----------
        x : Float[Tensor, "row pixel"]
        kick : Float[Tensor, "row dim"], optional
            Change of the state after the first step, in lengths of that state.
        """
        h, found = x.new_zeros(len(x), DIM), list[Tensor]()
        for piece in x.split(PIECE, 1):
            found.append(self.first(piece) + self.back(h))
            h = torch.relu(self.norm(found[-1]))
            if kick is not None and len(found) == 1:
                h = h + kick * h.norm(dim=1, keepdim=True)
        return torch.stack(found)

    def forward(self, x: Float[Tensor, "row pixel"]) -> Float[Tensor, "row label"]:
        """Return the logits after the last piece."""
        return self.head(torch.relu(self.norm(self.sums(x)[-1])))


class _Scale(nn.Module):
    """The gain and the bias of a layer norm after a norm of length alone, or after none."""

    def __init__(self, by_length: bool) -> None:
        super().__init__()
        self.by_length = by_length
        self.gain, self.bias = nn.Parameter(torch.ones(DIM)), nn.Parameter(torch.zeros(DIM))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled sums."""
        return self.gain * (rms_norm(x, (DIM,), eps=EPS) if self.by_length else x) + self.bias


def recurrent_range(
    norm: Norm, x: Float[Tensor, "row pixel"], label: Int[Tensor, "row"], seed: int, steps: int
) -> dict[str, float]:
    """Train a recurrent net on digits read in pieces; return its accuracy and its sums' range."""
    net = learned_net(norm, x, label, seed, steps)
    return {"right": accuracy(net, x[FIT:], label[FIT:]), **range_of(net, x[FIT:], seed)}


def learned_net(
    norm: Norm, x: Float[Tensor, "row pixel"], label: Int[Tensor, "row"], seed: int, steps: int
) -> RecurrentNet:
    """Return a recurrent net that is trained on the first digits, read in pieces."""
    net = drawn(lambda: RecurrentNet(norm), seed)
    minimise(
        lambda r: cross_entropy(net(x[r]), label[r]),
        net.parameters(), FIT, steps=steps, seed=seed,
    )  # fmt: skip
    return net


@torch.no_grad()
def range_of(net: RecurrentNet, x: Float[Tensor, "row pixel"], seed: int) -> dict[str, float]:
    """Return the range of a net's summed inputs after the first step.

    ``spread`` is the standard deviation over steps of the logarithm of the length of the sums (mean
    over rows), ``length`` the mean of their length. ``kept`` is the logarithm of how much of a
    small change of the first state is left at the last step, each relative to the sums' length.

    Parameters
    ----------
    net : RecurrentNet
    x : Float[Tensor, "row pixel"]
    seed : int
        Draws the changes of the first state.
    """
    draw = torch.Generator().manual_seed(seed)
    kick = KICK * normalize(torch.randn(len(x), DIM, generator=draw), dim=1)
    sums = net.sums(x)[1:]
    length = sums.norm(dim=2).clamp(min=1e-9)
    moved = (net.sums(x, kick)[1:] - sums).norm(dim=2) / length
    return {
        "spread": float(length.log().mean(1).std()),
        "length": float(length.mean()),
        "kept": float((moved[-1] / moved[0]).clamp(min=1e-9).log().mean()),
    }
