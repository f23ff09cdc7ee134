"""Spread the classes over different directions, and each class over many (rate reduction).

For representations that are to be used linearly. In small batches the rate is biased upwards;
``average`` reduces the bias. To judge the result, fit the measure of the same name on all rows.
"""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde.core.autocast import in_float32
from sonde.core.errors import BatchError
from sonde.core.ranges import check_ranges
from sonde.stats import rate_gain
from sonde.tap.hooks.latest import CopiedLock
from sonde.tap.training.ranks import of_all_ranks
from sonde.train._callers import OfStep


@final
class RateReduction(nn.Module):
    """Negative rate reduction of a batch's rows; minimising it separates the classes.

    ``-(R - sum_k n_k / n R_k)`` with ``R = ln det(1 + dim / eps2 M) / 2`` and the second moments
    ``M`` of unit rows, as in ``sonde.measure.rate_reduction``.

    Range        [-R, 0], nats; lower = classes in more different directions.
    Cost         O(classes dim^3) a step.
    Assumes      two classes or more in the batch; rows with label -1 are left out. With
                 ``average``: classes numbered from 0, and two classes or more in batch and average
                 together.
    Differs      from the paper: for one row, not summed over rows; the moving average is ours.
    Batching     log_mean: the value depends on the number of rows of the batch.

    Parameters
    ----------
    eps2 : float, default=0.5
        Tolerated squared error of a row.
    average : float, default=0.0
        Share of the earlier batches' second moments that a step keeps, as if a batch had
        ``1 / (1 - average)`` times as many rows. A row's gradient keeps its size. In eval mode only
        the given rows count.
    gather : bool, default=True
        If several processes train, take the rows of all of them, so that gradients are those of
        one process with the whole batch. False if the rows given are those of all processes.

    References
    ----------
    yu2020mcr2
    """

    paper: ClassVar[str] = "yu2020mcr2"
    batching: ClassVar[str] = "log_mean"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"eps2": 0.1}, {"average": 0.8})
    sums: Tensor
    n: Tensor

    def __init__(self, eps2: float = 0.5, average: float = 0.0, gather: bool = True) -> None:
        super().__init__()
        self.gather = gather
        self.eps2, self.average = eps2, average
        check_ranges(self, eps2="> 0", average="[0, 1)")
        self.register_buffer("sums", torch.zeros(0, 1, 1))
        self.register_buffer("n", torch.zeros(0))
        self._coming: OfStep[tuple[Tensor, Tensor, Tensor]] = OfStep()
        self._turn = CopiedLock()
        self.register_load_state_dict_pre_hook(_as_large)

    @of_all_ranks("x", "label")
    @in_float32
    def forward(self, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"]) -> Float[Tensor, ""]:
        """Return the negative rate reduction of rows with labels."""
        kept = label >= 0
        rows, label = normalize(x[kept], dim=1), label[kept]
        classes, of = label.unique(return_inverse=True)
        parts = [rows[of == k] for k in range(len(classes))]
        n = torch.bincount(of, minlength=len(classes)).to(rows)
        sums = torch.stack([part.T @ part for part in parts]) if parts else rows.new_zeros(0, 1, 1)
        if self.average and self.training:
            self._coming.add((sums.detach(), n, classes))
            with self._turn:
                before = self.sums, self.n
            sums, n = _added(before, sums, n, classes)
            sums, n = sums[n > 0], n[n > 0]
        if len(n) < 2:
            raise BatchError(
                f"RateReduction: expected rows of two classes or more, got {len(n)}. Draw "
                "batches that mix classes."
            )
        seconds, share = sums / n[:, None, None], n / n.sum()
        value = -rate_gain(seconds, share, x.shape[1] / self.eps2)[0]
        # a row is one of n.sum(), and stands for the rows of a whole batch
        return value + (n.sum() / len(rows) - 1) * (value - value.detach())

    def step(self) -> None:
        """Keep a fraction of the accumulated second moments for the next step."""
        if not self.average:
            return
        with self._turn:
            kept = self.sums, self.n
            for sums, n, classes in self._coming.taken():
                kept = _added(kept, sums, n, classes)
            self.sums, self.n = (self.average * x for x in kept)


def _added(
    before: tuple[Tensor, Tensor], sums: Tensor, n: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return sums and counts by class, added to earlier sums and counts."""
    size = max(len(before[1]), int(classes.max()) + 1 if len(classes) else 0)
    all_sums, all_n = sums.new_zeros(size, *sums.shape[1:]), n.new_zeros(size)
    if len(before[1]):
        all_sums[: len(before[1])], all_n[: len(before[1])] = before
    return all_sums.index_add(0, classes, sums), all_n.index_add(0, classes, n)


def _as_large(loss: RateReduction, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Allocate as many classes as the state holds; old states hold none."""
    for name in ("sums", "n"):
        own = loss.get_buffer(name)
        saved = state.setdefault(f"{prefix}{name}", own)
        setattr(loss, name, saved.to(own.device, copy=True))
    loss._coming = OfStep()
