"""Remove the latents that a variational autoencoder leaves at the prior.

If ``active_variables`` finds latents that say nothing, their codes are noise to later layers.
"""

from dataclasses import dataclass
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from sonde.core.edit import AffineMap, Edit, EditContext, check_width
from sonde.core.errors import InputError
from sonde.core.site import Site

PASSIVE: Final = 0


@final
@dataclass(frozen=True)
class DropPassive(Edit):
    """Set the passive latents of a code to 0, the mean of the prior.

    Range        the shape and type of the activation.
    Cost         a copy of the activation.
    Assumes      a site whose last axis holds the codes, in the order of the kinds.

    Parameters
    ----------
    kind : tuple of int
        Kind of each latent, as ``active_variables`` says: 0 for passive, 1 for mixed, 2 for active.
    mixed : bool, default=False
        Whether mixed latents go too.
    strength : float, default=1.0
        Share of the code that is taken out.

    Examples
    --------
    >>> import sonde
    >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    >>> with sonde.editing(net, DropPassive((2, 0, 1)), "0"):
    ...     net(torch.tensor([[3.0, 4.0, 5.0]])).tolist()
    [[3.0, 0.0, 5.0]]

    References
    ----------
    bonheme2023more
    """

    kind: tuple[int, ...]
    mixed: bool = False
    strength: float = 1.0
    paper: ClassVar[str] = "bonheme2023more"

    def __post_init__(self) -> None:
        if not self.kind or not set(self.kind) <= {0, 1, 2}:
            raise InputError(
                f"DropPassive: expected the kind 0, 1 or 2 of each latent, got {self.kind!r}. "
                "Use the kinds of active_variables(mu, log_variance): "
                "tuple(found.kind.tolist())."
            )

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the code without its passive latents."""
        if self.strength == 0.0:
            return x
        check_width("DropPassive", torch.empty(len(self.kind)), x, site)
        new = x.clone()
        new[..., self.gone] *= 1.0 - self.strength
        return new

    def as_affine(self) -> AffineMap:
        """Return the affine map of codes, which can be folded into the next layer."""
        axes = torch.eye(len(self.kind))[:, self.gone]
        return AffineMap(left=-self.strength * axes, right=axes)

    @property
    def gone(self) -> list[int]:
        """Mask of the removed latents."""
        most = PASSIVE + int(self.mixed)
        return [i for i, kind in enumerate(self.kind) if int(kind) <= most]
