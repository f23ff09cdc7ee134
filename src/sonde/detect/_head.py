"""The model's final linear layer, in detectors that score rows through it."""

from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.detect.energy import energy_of
from sonde.stats import HeadWeightsState


def check_head(owner: str, head: HeadWeightsState, dim: int) -> None:
    """Raise a ``ShapeError`` unless the head takes rows of this width."""
    takes = head.weight.shape[1]
    if takes != dim:
        raise ShapeError(
            f"{owner}: expected rows of width {takes}, which the model's final linear layer takes, "
            f"got dim={dim}. Fit it at the input of that layer."
        )


def head_logits(head: HeadWeightsState, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row class"]:
    """Return the logits of rows in a float type of at least 32 bits."""
    return head.logits(x if x.is_floating_point() and x.itemsize >= 4 else x.float())


def head_energy(head: HeadWeightsState, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
    """Return the energy of the logits that the head gives to rows."""
    return energy_of(head_logits(head, x), 1.0)
