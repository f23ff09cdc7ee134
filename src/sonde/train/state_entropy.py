"""Entropy of the values of states as a loss: layers whose states spread less depend less."""

from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges

LEAST = 1e-7


@final
class StateEntropy(nn.Module):
    """Entropy of the values of all units of a site, in bits, by a histogram with a gradient.

    A value between the centres of two bins counts for both, by its distance from each, so that the
    entropy has a gradient. Without ``ends`` the bins reach from the least to the largest value of
    the batch, as in ``BlockRounding``, which cuts where this entropy is low: minimise it at the
    layers of an encoder, beside the encoder's own loss, so that their rounding can be searched in
    shorter runs.

    Range        [0, log2(bins)], bits.
    Cost         O(values).
    Assumes      finite values.
    Differs      from the paper: bins with a gradient; the paper's own estimate is not known to us.
    Batching     rises with the rows: more values fill more bins.

    Parameters
    ----------
    bins : int, default=256
        Number of bins of equal width.
    ends : tuple of 2 floats, default=None
        The centres of the first and the last bin; values beyond an end count for its bin. None
        takes the least and the largest value of each batch, through which no gradient goes.

    Examples
    --------
    >>> import torch
    >>> float(StateEntropy(3)(torch.tensor([[0.0, 1.0], [2.0, 1.0]])))
    1.5

    References
    ----------
    wang2024qvlm
    """

    paper: ClassVar[str] = "wang2024qvlm"
    batching: ClassVar[str] = "log_mean"
    examples: ClassVar[tuple[dict, ...]] = (
        {"bins": 8, "ends": (-9.0, 9.0)},
        {"bins": 32, "ends": (-9.0, 9.0)},
    )

    def __init__(self, bins: int = 256, ends: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.bins, self.ends = bins, ends
        check_ranges(self, bins=">= 2")
        if ends is not None and not ends[0] < ends[1]:
            raise InputError(f"StateEntropy: expected ends in rising order, got {ends}.")

    @in_float32
    def forward(self, x: Float[Tensor, "row *axes"]) -> Float[Tensor, ""]:
        """Return the entropy of the values.

        Parameters
        ----------
        x : Float[Tensor, "row *axes"]
            A value that is not a number makes the entropy NaN, as in other losses.

        Raises
        ------
        InputError
            If there are no values.
        """
        values = x.flatten()
        if not len(values):
            raise InputError("StateEntropy: expected values, got none.")
        low, high = values.detach().aminmax() if self.ends is None else values.new_tensor(self.ends)
        place = (values - low) / (high - low).clamp(min=1e-12) * (self.bins - 1)
        place = place.clamp(0, self.bins - 1)
        under = place.detach().nan_to_num(0.0).floor().clamp(0, self.bins - 2)  # NaN stays in above
        above = place - under
        counts = values.new_zeros(self.bins).index_add(0, under.long(), 1 - above)
        p = counts.index_add(0, under.long() + 1, above) / len(values)
        return -(p * p.clamp(min=LEAST).log2()).sum()  # an empty bin has no infinite gradient
