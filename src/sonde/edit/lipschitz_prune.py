"""Silence channels that amplify much more than their neighbours, without data.

A backdoor's trigger is small and must move the answer far, so a poisoned net tends to have channels
of large gain. For convolutional nets with batch norm; a clean net may have such channels too.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.weights import Change, Rewrite, RewritePlan, Sparse, module_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@final
@dataclass(frozen=True)
class LipschitzPrune(Rewrite):
    """Silence each channel whose gain is far above the mean of its layer.

    The gain of a channel is the largest singular value of its kernel, as a matrix of input channels
    by places, times the gain of the batch norm behind it. Channels with a gain above ``mean +
    spreads std`` of their layer get a batch norm of weight and bias 0.

    Range        weights and biases of batch norms alone change.
    Cost         one small decomposition for each channel; no data.
    Assumes      convolutions with a batch norm right behind them in the order of registration.

    Parameters
    ----------
    spreads : float, default=3.0
        A layer of ``n`` channels can have no channel above ``sqrt(n - 1)``.

    References
    ----------
    zheng2022clp
    """

    spreads: float = 3.0
    paper: ClassVar[str] = "zheng2022clp"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"spreads": 0.5},)

    def __post_init__(self) -> None:
        check_ranges(self, spreads="> 0")

    def planned(self, model: Model) -> RewritePlan:
        """Return the changes that silence channels.

        Raises
        ------
        InputError
            If no convolution has a batch norm behind it.
        """
        changes: dict[str, Change] = {}
        n_silenced = n_channels = 0
        for name, norm, gains in channel_gains(module_of(model)):
            high = gains > gains.mean() + self.spreads * gains.std(correction=0)
            index = high.nonzero()[:, 0]
            n_channels, n_silenced = n_channels + len(gains), n_silenced + len(index)
            for part in ("weight", "bias"):
                if len(index) and getattr(norm, part) is not None:
                    zeros = torch.zeros(len(index), dtype=torch.float64)
                    changes[f"{name}.{part}"] = Sparse(index, zeros)
        if not n_channels:
            raise InputError(
                "LipschitzPrune.plan: expected convolutions with a batch norm behind them, got "
                f"none in {type(module_of(model)).__name__}. Use another method for this model."
            )
        return RewritePlan.of(
            model,
            changes,
            f"lipschitz_prune(spreads={self.spreads:g})",
            n_silenced=float(n_silenced),
            n_channels=float(n_channels),
        )


def channel_gains(
    module: nn.Module,
) -> list[tuple[str, nn.modules.batchnorm._BatchNorm, Float[Tensor, "channel"]]]:
    """Return (name, batch norm, gains of its channels) for each norm after a convolution."""
    gains: list[tuple[str, nn.modules.batchnorm._BatchNorm, Tensor]] = []
    before: nn.Module | None = None
    for name, part in module.named_modules():
        if next(part.children(), None) is not None:
            continue
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and isinstance(before, _CONVOLUTIONS):
            kernel = before.weight.detach().double()
            if part.weight is not None and part.running_var is not None:
                scale = (part.running_var.double() + part.eps).rsqrt() * part.weight.detach().abs()
                largest = torch.linalg.matrix_norm(kernel.flatten(2), ord=2)
                gains.append((name, part, (largest * scale).cpu()))
        before = part
    return gains
