"""Train a decoder from a site to the input, to see the information in the states.

The model never changes: no gradient goes into the states. Judge the decoded inputs by another
model as well, since a small error can lose the class and a large one keep it.
"""

from collections.abc import Callable
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.core.wording import plural
from sonde.stats import ridge_of_rows


@final
class InputDecoder(nn.Module):
    """Mean squared error of reconstructing ``y`` from the states ``x``, linearly or by an MLP.

    ``solve`` gives the linear decoder in closed form, as a start or as a baseline. ``loop`` shows a
    classifier its own decoded states again and again (perceptual loop). ``perceive`` assembles what
    a net sees of an input from several random starts of that loop; a classifier behind it is a
    perceptualised classifier.

    Range        [0, inf), squared units of ``y``; lower = the states hold more of it.
    Cost         one product for each layer of the decoder.
    Assumes      rows of both sites in the same order.
    Batching     mean.

    Parameters
    ----------
    width : int
        Numbers of an input, flattened.
    hidden : sequence of int, default=()
        Widths of inner layers; none: a linear map.

    References
    ----------
    semiotics
    """

    paper: ClassVar[str] = "semiotics"
    batching: ClassVar[str] = "mean"
    examples: ClassVar[tuple[dict, ...]] = ({"width": 4}, {"width": 4, "hidden": (5,)})

    def __init__(self, width: int, hidden: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.width = width
        check_ranges(self, width=">= 1")
        layers: list[nn.Module] = []
        for n in hidden:
            layers += [nn.LazyLinear(n), nn.GELU()]
        self.decoder = nn.Sequential(*layers, nn.LazyLinear(width))

    @in_float32
    def forward(
        self, x: Float[Tensor, "row dim"], y: Float[Tensor, "row *axes"]
    ) -> Float[Tensor, ""]:
        """Return the mean squared error of decoding."""
        if y[:1].numel() != self.width:
            raise InputError(
                f"InputDecoder: expected inputs of {self.width} numbers, got {y[:1].numel()}. Pass "
                f"width={y[:1].numel()}."
            )
        return (self.decode(x) - y.detach().flatten(1)).square().mean()

    @in_float32
    def decode(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row width"]:
        """Return the inputs decoded from the states."""
        return self.decoder(x.detach())

    @torch.no_grad()
    def solve(self, x: Float[Tensor, "row dim"], y: Float[Tensor, "row *axes"]) -> "InputDecoder":
        """Set the decoder to the best linear map, in closed form, and return it.

        Raises
        ------
        InputError
            If the decoder has inner layers.
        """
        if len(self.decoder) != 1:
            raise InputError(
                f"InputDecoder.solve: expected a decoder without inner layers, got "
                f"{plural(len(self.decoder) // 2, 'inner layer')}. Train it by gradient descent."
            )
        weight, bias = ridge_of_rows(x.double(), y.flatten(1).double())
        linear = nn.Linear(x.shape[1], self.width, device=x.device, dtype=x.dtype)
        linear.weight.copy_(weight.T)
        linear.bias.copy_(bias)
        self.decoder[0] = linear
        return self

    @torch.no_grad()
    def loop(
        self,
        encode: Callable[[Tensor], Tensor],
        classify: Callable[[Tensor], Tensor],
        x: Float[Tensor, "row *axes"],
        n: int = 1,
    ) -> tuple[Float[Tensor, "step row class"], Float[Tensor, "step row *axes"]]:
        """Return the answers and inputs of every step, with inputs decoded from the last states.

        Parameters
        ----------
        encode, classify : callable
            Maps from inputs to rows of the site, and from inputs to logits.
        x : Float[Tensor, "row *axes"]
        n : int, default=1
            Steps after the first, whose inputs are ``x``.
        """
        inputs, answers = [x], [classify(x)]
        for _ in range(n):
            inputs.append(self.decode(encode(inputs[-1])).reshape(x.shape))
            answers.append(classify(inputs[-1]))
        return torch.stack(answers), torch.stack(inputs)

    @torch.no_grad()
    def perceive(
        self,
        encode: Callable[[Tensor], Tensor],
        x: Float[Tensor, "row *axes"],
        n: int = 1,
        draws: int = 1,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "row *axes"]:
        """Return the inputs that a net sees: the mean of decoded inputs over random starts.

        Train a classifier on what this returns, drawn anew at each step, and show it perceived
        inputs later too.

        Parameters
        ----------
        encode : callable
            Maps inputs to rows of the site.
        x : Float[Tensor, "row *axes"]
        n : int, default=1
            Rounds of encoding and decoding.
        draws : int, default=1
            Random starts whose results are averaged.
        noise : float, default=0.0
            Standard deviation of the noise on each start, in units of the input.
        generator : torch.Generator, optional
            Draws the noise, on the CPU.

        Raises
        ------
        InputError
            If there is no round, no start, or a negative noise.
        """
        if min(n, draws) < 1 or noise < 0:
            raise InputError(
                "InputDecoder.perceive: expected one round and one draw or more, and a noise of 0 "
                f"or more, got n={n}, draws={draws} and noise={noise}."
            )
        seen = torch.zeros_like(x)
        for _ in range(draws):
            start = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            now = x + noise * start.to(x.device)
            for _ in range(n):
                now = self.decode(encode(now)).reshape(x.shape).to(x)
            seen += now / draws
        return seen
