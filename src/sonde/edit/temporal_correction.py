"""Keep frames between key frames near the interpolated states of the key frames."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError, ShapeError
from sonde.core.site import Site


@final
@dataclass(frozen=True)
class TemporalCorrection(Edit):
    """Use another run's states at key positions, and blend other positions towards them.

    At a key position the state becomes that of the other run; at position ``t`` between two keys,
    ``(1 - s) x_t + s (left + (right - left) u)`` with ``u`` the share of the way. Positions before
    the first and behind the last key stay.

    Cost         one blend; the other run over the key positions alone.
    Assumes      the second axis is time; ``EditContext.others`` holds a state for each key.
    Differs      from the paper, which gives no formulas: this is the general blend of states.

    Parameters
    ----------
    keys : tuple of int
        Key positions, rising.
    source : str, default="key"
        The name of the other run: (example, key, dim).
    strength : float, default=1.0
        ``s``, in [0, 1]; also the weight of the other run at the keys.

    Examples
    --------
    >>> keys = torch.tensor([[[0.0], [4.0]]])
    >>> edit, context = TemporalCorrection((0, 2)), EditContext(others={"key": keys})
    >>> edit.apply(torch.full((1, 4, 1), 9.0), Site("0"), context).flatten().tolist()
    [0.0, 2.0, 4.0, 9.0]

    References
    ----------
    yang2024zerosmooth
    """

    keys: tuple[int, ...]
    source: str = "key"
    strength: float = 1.0

    def __post_init__(self) -> None:
        rises = all(a < b for a, b in zip(self.keys, self.keys[1:], strict=False))
        if not self.keys or not rises or self.keys[0] < 0:
            raise InputError(
                f"TemporalCorrection: expected key positions that rise from 0, got {self.keys}."
            )

    @property
    def others_per(self) -> Literal["token", "example"]:
        """Examples with a state for each key."""
        return "example"

    def apply(
        self, x: Float[Tensor, "example t dim"], site: Site, context: EditContext
    ) -> Float[Tensor, "example t dim"]:
        """Return the states, corrected at and between the key positions."""
        if self.strength == 0.0:
            return x
        source = context.others.get(self.source)
        expected = (x.shape[0], len(self.keys), x.shape[-1])
        if source is None or tuple(source.shape) != expected or self.keys[-1] >= x.shape[1]:
            got = "none" if source is None else tuple(source.shape)
            raise ShapeError(
                f"TemporalCorrection: expected states {expected} of the run {self.source!r} and "
                f"keys below {x.shape[1]}, got {got} and keys {self.keys} at {site}."
            )
        first, last = self.keys[0], self.keys[-1]
        at = torch.tensor(self.keys, device=x.device)
        t = torch.arange(first, last + 1, device=x.device)
        left = (torch.searchsorted(at, t, right=True) - 1).clamp(max=max(len(at) - 2, 0))
        right = (left + 1).clamp(max=len(at) - 1)
        gap = (at[right] - at[left]).clamp(min=1)
        share = ((t - at[left]).to(x) / gap)[:, None]
        between = torch.lerp(source.to(x)[:, left], source.to(x)[:, right], share)
        new = x.clone()
        new[:, first : last + 1] = torch.lerp(x[:, first : last + 1], between, self.strength)
        return new
