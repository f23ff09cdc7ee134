"""Weight and bias of the model's final linear layer, stored for results that need them."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.batch import Head
from sonde.core.errors import StateError
from sonde.core.state import State
from sonde.core.statistic import Statistic


@dataclass(frozen=True)
class HeadWeightsState(State):
    """The final layer as a linear map: ``logits = x @ weight.T + bias``."""

    weight: Float[Tensor, "class dim"]
    bias: Float[Tensor, "class"] | None

    def logits(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row class"]:
        """Return the final layer's logits for rows, in the rows' type or a wider one."""
        kind = torch.promote_types(x.dtype, self.weight.dtype)
        out = x.to(kind) @ self.weight.to(kind).T
        return out if self.bias is None else out + self.bias.to(kind)


@final
@dataclass(frozen=True)
class HeadWeights(Statistic[HeadWeightsState]):
    """The model's final linear layer; merged states must hold identical bits."""

    def observe(self, head: Head) -> HeadWeightsState:
        """Return a copy of the final layer."""
        weight, bias = head
        return HeadWeightsState(
            weight.detach().clone(), None if bias is None else bias.detach().clone()
        )

    def merge(self, a: HeadWeightsState, b: HeadWeightsState) -> HeadWeightsState:
        """Return the final layer that both states share."""
        same = _same(a.weight, b.weight) and (
            _same(a.bias, b.bias) if a.bias is not None and b.bias is not None else a.bias is b.bias
        )
        if not same:
            raise StateError(
                "HeadWeights.merge: expected the same head on both sides, got different "
                "weights. The two states were fitted on different models; fit both on the "
                "same model."
            )
        return a


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b.to(a.device))
