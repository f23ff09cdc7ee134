"""Find by trial the setting of a compression that fits a size or a divergence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sonde.compress import Fidelity, fidelity
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.weights import RewritePlan

BITS, GROUPS = (2, 3, 4, 5, 6, 7, 8), (128, 64, 32)
MOST_TRIED = 3
"""Settings below a budget that are compared: the largest ones."""


@dataclass(frozen=True)
class Setting:
    """A way to compress, and the bytes of the weight files that it would need."""

    method: str
    bits: int
    group: int
    n_bytes: int

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group} by {self.method}"


@dataclass(frozen=True)
class Trial:
    """A setting that was tried, its plan, and the change of the answers.

    Parameters
    ----------
    setting : Setting or None
        None if the user named the size.
    plan : RewritePlan
    fidelity : Fidelity
    """

    setting: Setting | None
    plan: RewritePlan
    fidelity: Fidelity

    def json(self) -> dict[str, Any]:
        """Return the setting with its bytes and its KL, or 1 - cosine for vectors."""
        setting = self.setting
        assert setting is not None  # only what a search tried is listed
        return {"method": setting.method, "size": f"{setting.bits}bit", "group": setting.group,
                "bytes": setting.n_bytes, "kl": self.fidelity.loss}  # fmt: skip


def require_divergence(model: Model, inputs: Inputs) -> None:
    """Raise if a divergence is requested for a model that answers with vectors.

    Raises
    ------
    InputError
        If one example has a vector as the answer.
    """
    if not math.isnan(fidelity(model, model.module, inputs, stop=1).cosine):
        raise InputError(
            "a limit on the KL divergence: expected a model that outputs probabilities, got "
            f"{type(model.module).__name__}, which outputs vectors. Vectors are compared by "
            "their cosine: use sonde compress --to or --budget."
        )


def fitting(
    settings: Sequence[Setting],
    tried: Callable[[Setting], Trial],
    *,
    budget: int | None = None,
    max_kl: float | None = None,
) -> tuple[Trial, list[Trial]]:
    """Return the best trial that fits, and all trials.

    With ``max_kl``, a binary search finds the smallest setting whose KL is at most ``max_kl``: KL
    falls with size, up to noise. With a budget alone, the largest settings within the budget are
    tried, and the setting of least KL is taken.

    Parameters
    ----------
    settings : sequence of Setting
    tried : callable
        Makes a trial.
    budget : int, optional
        Bytes of the weight files.
    max_kl : float, optional
        Mean divergence of the answers in nats.

    Raises
    ------
    InputError
        If no setting fits; the error names the nearest.
    """
    by_size = sorted(settings, key=lambda s: (s.n_bytes, -s.bits))
    below = [s for s in by_size if budget is None or s.n_bytes <= budget]
    if not below:
        raise InputError(
            f"--budget: no setting needs at most {budget:,} bytes; the nearest is {by_size[0]} "
            f"with {by_size[0].n_bytes:,} bytes. Layers that the method leaves out keep their size."
        )
    trials: list[Trial] = []
    if max_kl is None:
        trials += map(tried, below[-MOST_TRIED:])
        return min(trials, key=lambda t: t.fidelity.loss), trials
    low, high = 0, len(below)
    while low < high:
        middle = (low + high) // 2
        trials.append(tried(below[middle]))
        low, high = (low, middle) if trials[-1].fidelity.kl <= max_kl else (middle + 1, high)
    fine = [t for t in trials if t.fidelity.kl <= max_kl]
    if not fine:
        near = min(trials, key=lambda t: t.fidelity.kl)
        more = "" if budget is None else " within --budget"
        raise InputError(
            f"--max-kl: none of the tried settings{more} has a KL divergence of at most "
            f"{max_kl:g} nats; the nearest is {near.setting} with {near.fidelity.kl:.3g} nats. "
            "Raise --max-kl."
        )
    return min(fine, key=lambda t: t.setting.n_bytes if t.setting else 0), trials
