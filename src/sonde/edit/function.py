"""An edit from a plain function, for changes that need no class."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError
from sonde.core.site import Site


@final
@dataclass(frozen=True)
class Function(Edit):
    """Replace the activation by a function of it.

    The function gets a copy, so it may write into it. Padding and tokens that ``where`` leaves out
    keep their values, whatever it does there.

    Range        the shape and type of the activation.
    Cost         that of the function, and a copy.
    Assumes      a function that looks at no other example and draws no random numbers.

    Parameters
    ----------
    function : callable
        Function of ``x``, features last, or of ``(x, site, context)``; it returns a tensor of the
        same shape and type.
    strength : float, default=1.0
        Weight of what it returns.

    Examples
    --------
    >>> import sonde
    >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    >>> with sonde.editing(net, Function(torch.relu), "0"):
    ...     net(torch.tensor([[-1.0, 2.0]])).tolist()
    [[0.0, 2.0]]
    """

    function: Callable[..., Tensor]
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self._n_arguments not in (1, 3):
            raise InputError(
                "Function: expected a function of x, or of (x, site, context), got a function "
                f"of {self._n_arguments} arguments."
            )

    @cached_property
    def _n_arguments(self) -> int:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # some built-in functions say nothing about themselves
            return 1
        needed = [p for p in parameters if p.default is p.empty and p.kind <= p.VAR_POSITIONAL]
        return 3 if any(p.kind == p.VAR_POSITIONAL for p in needed) else len(needed)

    def apply(
        self, x: Float[Tensor, "*axes dim"], site: Site, context: EditContext
    ) -> Float[Tensor, "*axes dim"]:
        """Return the function's result for a copy of ``x``."""
        if self.strength == 0.0:
            return x
        more = (site, context) if self._n_arguments == 3 else ()
        new = self.function(x.clone(), *more)
        return new if self.strength == 1.0 else torch.lerp(x, new, self.strength)
