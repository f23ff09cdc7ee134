"""Size of a change of rows, in standard deviations of the rows along the change."""

from jaxtyping import Float
from torch import Tensor


def spreads(old: Float[Tensor, "row dim"], new: Float[Tensor, "row dim"]) -> float:
    """Return the root mean square change of rows, in standard deviations along the change.

    Formula: ``sqrt(mean_i |c_i|^2 / mean_i (c_i^T S c_i / |c_i|^2))``, where ``c_i`` is the change
    of row ``i`` and ``S`` the covariance of ``old`` (divided by the number of rows). Rows that did
    not change are left out of both means, but not out of ``S``. A shift of all rows by ``a``
    standard deviations of one direction is ``a``.

    Examples
    --------
    >>> import torch
    >>> old = torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]])
    >>> spreads(old, old + torch.tensor([0.0, 3.0]))
    3.0
    """
    change = new.double() - old.double()
    change = change[change.norm(dim=1) > 0]
    if not len(change):
        return 0.0
    length = change.norm(dim=1)
    centred = old.double() - old.double().mean(0)
    along = (change / length[:, None]) @ centred.T
    spread = along.square().mean(1)
    return float((length.square().mean() / spread.mean()).sqrt())
