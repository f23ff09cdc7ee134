"""How far training states cover the states of test rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonde import read
from sonde.core import Result
from sonde.detect import NAC
from sonde.measure import activation_coverage
from sonde_studies._checkpoints import Data

SITE, FULL, FIXED, PAPER_FULL = "body:out", 0.05, 0.1, 500


@dataclass(frozen=True)
class Influence:
    """The states of a net on test rows, and the gradient there."""

    x: Tensor
    grad: Tensor
    label: Tensor
    logits: Tensor

    @classmethod
    def of(cls, net: nn.Module, data: Data) -> "Influence":
        """Read the states and gradients of a net once."""
        items: list[dict[str, Any]] = [
            {"x": x, "label": int(y), "id": str(i)}
            for i, (x, y) in enumerate(zip(data.fresh, data.fresh_label, strict=True))
        ]
        batches = list(read(net, items, sites=SITE, objective="kl_uniform"))
        names = ("x", "grad", "label", "logits")
        return cls(*(torch.cat([b.column(name, SITE) for b in batches]) for name in names))

    @property
    def alpha(self) -> float:
        """The steepness that ``NAC`` chooses on these rows."""
        return float(NAC().fit(self.x, grad=self.grad).conventions["alpha"])

    def covered(self, alpha: float, full: int) -> Result:
        """Return the coverage of the units."""
        return activation_coverage(
            self.x, grad=self.grad, label=self.label, logits=self.logits, alpha=alpha, full=full
        )

    def coverage(self, alpha: float, full: int) -> float:
        """Return the mean coverage."""
        return float(self.covered(alpha, full).value)


def full_of(data: Data) -> int:
    return max(1, round(FULL * len(data.fresh)))


def coverage_of(states: Influence, full: int) -> dict[str, float]:
    """Return the coverage for several ways to choose its parameters."""
    fixed, auto = states.covered(FIXED, full), states.alpha
    return {
        "alpha 0.1": float(fixed.value),
        "own alpha": states.coverage(auto, full),
        "paper's full": states.coverage(FIXED, PAPER_FULL),
        "auto": auto,
        "single bin": float(fixed.conventions["single_bin"]),
    }
