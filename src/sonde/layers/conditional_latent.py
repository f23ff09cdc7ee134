"""A latent variable given a context, for inputs that have several right answers.

Draw it several times for several answers. For a code of the input itself, whose parts are weighed,
take ``sonde.train.LatentTerms``.
"""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.layers.layer import Layer

LEAST, MOST = -8.0, 8.0
"""Of logarithms of variances."""


@final
class ConditionalLatent(Layer):
    """A Gaussian ``z`` whose mean and variance a context decides, in training with the answer.

    ``p(z | c)`` and ``q(z | c, y)`` are normal with diagonal covariances, whose means and
    logarithms of variances one hidden layer each computes. Train the model's answer on draws of
    ``q`` and add ``kl``; later draw from ``p``. One ``z`` for a whole scene lets its parts, such as
    the agents that move in it, take one way together.

    Cost         ``(context + target) hidden + 4 hidden width`` products a row.
    Assumes      a context that holds all that is known; answers of one width.
    Differs      from DSCMP: the context comes from any encoder; the paper's reads segmented maps.

    Parameters
    ----------
    context : int
        Width of the context.
    width : int
        Width of the latent.
    target : int
        Width of the answers, flat.
    hidden : int, default=32
        Units of the hidden layers.

    Examples
    --------
    >>> layer = ConditionalLatent(4, 2, 3)
    >>> c, y = torch.randn(5, 4), torch.randn(5, 3)
    >>> z = layer(c, y, noise=torch.randn(5, 2))
    >>> z.shape, layer.kl(c, y).shape
    (torch.Size([5, 2]), torch.Size([5]))

    References
    ----------
    tao2020dscmp
    """

    paper: ClassVar[str] = "tao2020dscmp"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"context": 4, "width": 3, "target": 2, "hidden": 5},
    )
    insertable = False

    def __init__(self, context: int, width: int, target: int, hidden: int = 32) -> None:
        super().__init__()
        if min(context, width, target, hidden) < 1:
            raise InputError(
                "ConditionalLatent: expected widths of at least 1, got "
                f"context={context}, width={width}, target={target} and hidden={hidden}."
            )
        self.context, self.width, self.target = context, width, target
        object.__setattr__(self, "layout", ("row context",))
        self.prior, self.posterior = (
            nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, 2 * width))
            for n in (context, context + target)
        )

    def forward(
        self,
        x: Float[Tensor, "row context"],
        target: Float[Tensor, "row target"] | None = None,
        noise: Float[Tensor, "row width"] | None = None,
    ) -> Float[Tensor, "row width"]:
        """Return the mean of the latent, or a draw.

        Parameters
        ----------
        x : Float[Tensor, "row context"]
        target : Float[Tensor, "row target"], optional
            The answer, in training; without it the latent is that of the prior.
        noise : Float[Tensor, "row width"], optional
            Standard normal numbers that make a draw; without them the mean is returned.
        """
        mean, log_variance = self.moments(x, target)
        return mean if noise is None else mean + (log_variance / 2).exp() * noise

    def moments(
        self, x: Float[Tensor, "row context"], target: Float[Tensor, "row target"] | None = None
    ) -> tuple[Float[Tensor, "row width"], Float[Tensor, "row width"]]:
        """Return means and logarithms of variances, of the prior or given the answer."""
        both = self.prior(x) if target is None else self.posterior(torch.cat([x, target], 1))
        mean, log_variance = both.chunk(2, 1)
        return mean, log_variance.clamp(LEAST, MOST)

    def kl(
        self, x: Float[Tensor, "row context"], target: Float[Tensor, "row target"]
    ) -> Float[Tensor, "row"]:
        """Return the divergence ``KL(q(z | c, y) || p(z | c))`` of each row, in nats."""
        mean, log_variance = self.moments(x)
        after, log_after = self.moments(x, target)
        apart = (after - mean).square() / log_variance.exp()
        return (apart + (log_after - log_variance).exp() - 1 + log_variance - log_after).sum(1) / 2
