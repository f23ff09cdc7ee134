"""A small gradient step of the inputs, for the column ``perturbed_logits`` (ODIN)."""

import math
from dataclasses import dataclass, fields
from typing import Any, cast

from sonde.core.errors import InputError


@dataclass(frozen=True)
class Perturbation:
    """A step of the inputs that makes a classifier more confident in its answer.

    ``x' = x - eps / std * sign(grad_x CE(f(x) / T, c))`` with ``c`` the largest logit of ``f(x)``.

    Parameters
    ----------
    temperature : float, default=1000.0
        ``T``.
    eps : float, default=0.0014
        Length of the step in every entry, in the units of the data before it was normalised; a
        negative one makes the classifier less sure.
    std : float or tuple of float, default=1.0
        What the data was divided by when it was normalised; one number for each channel (axis 1).
    """

    temperature: float = 1000.0
    eps: float = 0.0014
    std: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        std = self.std if isinstance(self.std, tuple) else (self.std,)
        if not (0.0 < self.temperature < math.inf and math.isfinite(self.eps)):
            raise InputError(
                "Perturbation: expected a positive temperature and a finite eps, got "
                f"{self.temperature} and {self.eps}."
            )
        if not std or not all(0.0 < s < math.inf for s in std):
            raise InputError(f"Perturbation: expected positive std, got {self.std}.")

    def json(self) -> dict[str, Any]:
        """Return the parameters as JSON for headers."""
        std = list(self.std) if isinstance(self.std, tuple) else self.std
        return {"temperature": self.temperature, "eps": self.eps, "std": std}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Perturbation":
        """Return a perturbation from the JSON of ``json``; missing parameters get defaults.

        Raises
        ------
        InputError
            If a name is no parameter, or a value is not a number.
        """
        names = [f.name for f in fields(cls)]
        unknown = [name for name in raw if name not in names]
        if unknown:
            raise InputError(
                f"Perturbation: expected parameters among {', '.join(names)}, got {unknown[0]!r}."
            )
        try:
            numbers = {name: _numbers(value) for name, value in raw.items()}
        except (TypeError, ValueError) as error:
            raise InputError(f"Perturbation: expected numbers, got {raw}.") from error
        return cls(**numbers)


def _numbers(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(float(v) for v in cast("list[Any]", value))
    return float(value)
