"""A flow of two parts: an encoder of the condition, which some steps leave out, and a decoder.

For samplers whose encoder is dear. ``share_steps`` plans the steps of the encoder.
"""

from collections.abc import Collection
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde.core.errors import InputError


@final
class SplitFlow(nn.Module):
    """Velocity from noise to data as ``decoder(encoder(x, time), x, time)``.

    The encoder reads the noisy example and says what it shows; the decoder reads that state beside
    the noisy example and moves it. Both are trained at once by the loss of the velocity. The
    decoder sees the example again: ``sample`` can leave the encoder out at some steps, at which
    the decoder works with the encoder's last state.

    Cost         ``n_steps`` runs of the decoder and one of the encoder for each step of ``at``.
    Assumes      a flow whose time runs from 0 (noise) to 1 (data).
    Differs      from the paper: Euler steps of one size; the parts are the caller's.

    Parameters
    ----------
    encoder : nn.Module
        Called with the noisy examples and their times (row 1); returns a state for each row.
    decoder : nn.Module
        Called with the states, the noisy examples and their times; returns velocities.

    References
    ----------
    wang2025ddt
    """

    paper: ClassVar[str] = "wang2025ddt"

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self, x: Float[Tensor, "row *axes"], time: Float[Tensor, "row 1"]
    ) -> Float[Tensor, "row *axes"]:
        """Return the velocities of noisy examples at their times."""
        return self.decoder(self.encoder(x, time), x, time)

    def sample(
        self,
        noise: Float[Tensor, "row *axes"],
        n_steps: int,
        at: Collection[int] | None = None,
    ) -> Float[Tensor, "row *axes"]:
        """Return examples from noise.

        Parameters
        ----------
        noise : Float[Tensor, "row *axes"]
        n_steps : int
            Steps of the sampler, at least 1.
        at : collection of int, optional
            Steps at which the encoder runs, with step 0 among them; all by default.

        Raises
        ------
        InputError
            If step 0 is left out, or a step is none of the sampler's.
        """
        return self._run(noise, n_steps, range(n_steps) if at is None else at)[0]

    def similarity(
        self, noise: Float[Tensor, "row *axes"], n_steps: int
    ) -> Float[Tensor, "step step"]:
        """Return the mean cosine between the states of two steps, for ``share_steps``.

        Parameters
        ----------
        noise : Float[Tensor, "row *axes"]
        n_steps : int
        """
        states = torch.stack(self._run(noise, n_steps, range(n_steps))[1])
        unit = normalize(states.flatten(2), dim=2)
        return torch.einsum("and,bnd->ab", unit, unit) / states.shape[1]

    def _run(self, x: Tensor, n_steps: int, at: Collection[int]) -> tuple[Tensor, list[Tensor]]:
        if n_steps < 1 or 0 not in at or not all(0 <= step < n_steps for step in at):
            raise InputError(
                "SplitFlow.sample: expected at least one step, and steps of the encoder that begin "
                f"with 0 and are below n_steps={n_steps}, got {sorted(at)}."
            )
        states = list[Tensor]()
        for step in range(n_steps):
            time = x.new_full((len(x), 1), step / n_steps)
            if step in at:
                states.append(self.encoder(x, time))
            x = x + self.decoder(states[-1], x, time) / n_steps
        return x, states
