"""The model's final linear layer, as used by detectors."""

from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.detect.energy import energy_of
from sonde.stats import HeadWeightsState


def check_head(owner: str, head: HeadWeightsState, dim: int) -> None:
    """Raise a ``ShapeError`` unless the final linear layer takes rows of this width."""
    takes = head.weight.shape[1]
    if takes != dim:
        raise ShapeError(
            f"{owner}: expected rows of width {takes}, the input width of the model's final "
            f"linear layer, got dim={dim}. Fit it at the input of that layer."
        )


def head_logits(head: HeadWeightsState, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row class"]:
    """Return the logits of rows in at least float32."""
    return head.logits(x if x.is_floating_point() and x.itemsize >= 4 else x.float())


def head_energy(head: HeadWeightsState, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
    """Return the energy of the logits that the final layer gives for rows."""
    return energy_of(head_logits(head, x), 1.0)
