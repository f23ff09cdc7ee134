"""Train a small network on a large one's answers: the baseline of distillation."""

from typing import ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.stats.divergence import kl_divergence


@final
class Distil(nn.Module):
    """Divergence of a student's softened answers from a teacher's, mixed with the true classes.

    Formula: ``w T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - w) CE(s, label)``, mean over rows.
    The factor ``T^2`` keeps the size of the gradient as the temperature rises.

    Range        [0, inf), nats.
    Cost         O(classes) for each row.
    Assumes      logits of the same classes; no gradient goes to the teacher.

    Parameters
    ----------
    temperature : float, default=4.0
        Divisor of both models' logits, above 0.
    weight : float, default=0.5
        Weight of the teacher, in [0, 1]; 1 needs no labels.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> float(Distil(weight=1.0)(logits, logits))
    0.0

    References
    ----------
    hinton2015distilling
    """

    paper: ClassVar[str] = "hinton2015distilling"

    def __init__(self, temperature: float = 4.0, weight: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.weight = temperature, weight
        check_ranges(self, temperature="> 0", weight="[0, 1]")

    @in_float32
    def forward(
        self,
        logits: Float[Tensor, "row classes"],
        teacher: Float[Tensor, "row classes"],
        label: Int[Tensor, "row"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss.

        Parameters
        ----------
        logits, teacher : Float[Tensor, "row classes"]
            Of the student and of the teacher.
        label : Int[Tensor, "row"], optional
            True classes; needed if ``weight`` is below 1.
        """
        if label is None and self.weight < 1:
            raise InputError(
                f"Distil: expected labels with weight {self.weight:g}, got none. Pass labels, "
                "or use weight=1."
            )
        p = (teacher.detach() / self.temperature).log_softmax(-1)
        q = (logits / self.temperature).log_softmax(-1)
        soft = self.temperature**2 * kl_divergence(p, q).mean()
        if label is None or self.weight == 1:
            return self.weight * soft
        return self.weight * soft + (1 - self.weight) * cross_entropy(logits, label)
