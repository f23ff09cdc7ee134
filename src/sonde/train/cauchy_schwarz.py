"""Regression through an information bottleneck with kernel estimates, not Gaussian ones.

For targets that are numbers. Kernels need a batch of some hundred rows. Kernel widths are frozen at
the first batch: otherwise the loss would change with the widths.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.autocast import in_float32
from sonde.core.errors import BatchError, InputError
from sonde.stats import conditional_divergence, quadratic_information
from sonde.stats.fourier import kernel_width
from sonde.tap.training.ranks import of_all_ranks

LEAST = 2


@final
class CauchySchwarzBottleneck(nn.Module):
    """Divergence of the prediction from the truth, plus the site's information about the input.

    Formula: ``D(p(label | y); p(logits | y)) + beta I(x; y)`` for a bottleneck ``x`` and an input
    ``y``. ``D`` is the conditional Cauchy-Schwarz divergence, ``I`` the quadratic mutual
    information that ``sonde.measure.cauchy_schwarz_information`` reports, both with Gaussian
    kernels. ``D`` is given the input: given the bottleneck, a constant bottleneck would cost
    nothing as long as predictions are distributed as targets are.

    Range        (-inf, inf), nats; 0 + beta I for a perfect prediction.
    Cost         O(rows^2 (dim + dim2)) a step.
    Assumes      two rows or more that differ.
    Differs      from the paper's code: row sums squared (the formula of the paper) and natural
                 logarithms, where the code has row sums of squares and base 2; widths are frozen.
    Batching     log_mean: the value depends on the number of rows of the batch.

    Parameters
    ----------
    beta : float, default=1e-3
        Weight of what the site keeps.
    widths : (float, float, float), optional
        Widths of the kernels of ``x``, ``y`` and ``label``. By default the median distance in the
        first batch, divided by the square root of 2.
    gather : bool, default=True
        If several processes train, take the rows of all of them, so that gradients are those of
        one process with the whole batch. False if the rows given are those of all processes.

    References
    ----------
    yu2024csib
    """

    paper: ClassVar[str] = "yu2024csib"
    batching: ClassVar[str] = "log_mean"
    examples: ClassVar[tuple[dict, ...]] = ({}, {"beta": 0.5, "widths": (1.0, 2.0, 0.5)})
    widths: Tensor

    def __init__(
        self,
        beta: float = 1e-3,
        widths: tuple[float, float, float] | None = None,
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.gather = gather
        if not beta >= 0 or (widths is not None and not min(widths) > 0):
            raise InputError(
                "CauchySchwarzBottleneck: expected beta of 0 or more and widths above 0, got "
                f"{beta}, {widths}."
            )
        self.beta, self.given = beta, widths
        initial = torch.zeros(3) if widths is None else torch.tensor(widths)
        self.register_buffer("widths", initial)

    @of_all_ranks("x", "y", "logits", "label")
    @in_float32
    def forward(
        self,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim2"] | None,
        logits: Float[Tensor, "row ..."],
        label: Float[Tensor, "row ..."],
    ) -> Float[Tensor, ""]:
        """Return divergence plus ``beta`` times information.

        Parameters
        ----------
        x : Float[Tensor, "row dim"]
            Of the bottleneck; of the input if ``y`` is None.
        y : Float[Tensor, "row dim2"] or None
            Of the input, or of an earlier site; may be None if ``beta`` is 0, and then ``x`` is
            what the divergence is given.
        logits : Float[Tensor, "row ..."]
            What the model predicts.
        label : Float[Tensor, "row ..."]
            The target.
        """
        if y is None and self.beta > 0:
            raise InputError(
                f"CauchySchwarzBottleneck: expected y, the input, for beta {self.beta}, got None. "
                "Name two sites, the bottleneck and the input, or set beta to 0."
            )
        truth = label.reshape(len(x), -1).to(x)
        predicted = logits.reshape(len(x), -1)
        if predicted.shape != truth.shape:
            raise InputError(
                "CauchySchwarzBottleneck: expected as many predictions as targets in each "
                f"row, got {predicted.shape[1]} and {truth.shape[1]}. Pass the model's output "
                "as logits."
            )
        before = x if y is None else y
        self._freeze(x, before, truth)
        wide, wide_before, wide_label = self.widths.to(x)
        x, before = x - x.mean(0), before - before.mean(0)
        middle = truth.mean(0)
        truth, predicted = truth - middle, predicted - middle
        x, before = x / wide, before / (wide if y is None else wide_before)
        value = conditional_divergence(before, truth / wide_label, predicted / wide_label)
        return value + self.beta * quadratic_information(x, before) if self.beta else value

    @torch.no_grad()
    def _freeze(self, *each: Tensor) -> None:
        """Set the kernel widths from the first batch."""
        if bool(self.widths.all()):
            return
        if len(each[0]) < LEAST:
            raise BatchError(
                f"CauchySchwarzBottleneck: expected two rows or more, got {len(each[0])}."
            )
        measured = torch.tensor([kernel_width(rows.detach().double()) for rows in each])
        self.widths.copy_(torch.where(measured > 0, measured, 1.0))
