"""Softmax probability after a small input step towards the classifier's own answer.

Usual inputs gain more from the step than unusual ones. Costs a backward and two forwards more than
``MSP``, and needs inputs of floating-point numbers.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sonde.core.instrument import Detector
from sonde.core.perturbation import Perturbation
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Statistic
from sonde.detect._logits import LogitScoreSum, LogitScoreSumState, at_least_single
from sonde.detect._metric import check_fitted_width
from sonde.detect.msp import MSP


@final
@dataclass(frozen=True, kw_only=True)
class ODINScorer(Scorer):
    """The largest softmax probability after the step; ``value`` is its mean over fitted rows."""

    temperature: float
    n_classes: int

    def score(self, perturbed_logits: Float[Tensor, "row class"]) -> Float[Tensor, "row"]:
        """Return the score of each row."""
        check_fitted_width("ODIN", perturbed_logits, self.n_classes, "classes")
        scores = MSP(self.temperature).scores(at_least_single(perturbed_logits))
        return infinite_where_nonfinite(scores, logits=perturbed_logits)


@final
@dataclass(frozen=True)
class ODIN(Detector):
    """Negative of the largest softmax probability at high temperature, after a step of the input.

    ``-max_c softmax(f(x') / T)_c`` with
    ``x' = x - eps / std * sign(grad_x CE(f(x) / T, c))`` and ``c`` the class predicted for ``x``.
    The tap makes ``f(x')``: ``sonde.read(model, data, **ODIN().reading())``.

    Range        [-1, -1 / classes]; higher = more unusual.
    Cost         one pass, with two forwards and a backward more; state 24 bytes; O(classes).
    Assumes      a classifier of floating-point inputs; ``std`` where these were normalised.
    Differs      nothing: the gradient is that of the cross-entropy, and ``T`` divides in both
                 places.

    Parameters
    ----------
    temperature : float, default=1000.0
        ``T``.
    eps : float, default=0.0014
        Step in units of the data before it was normalised.
    std : float or tuple of float, default=1.0
        What the data was divided by; one number for each channel.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> scorer = ODIN(temperature=1.0).fit(logits, perturbed_logits=logits)
    >>> scorer.score(logits).round(decimals=4).tolist()
    [-0.6652, -0.3333]

    References
    ----------
    liang2018odin
    """

    temperature: float = 1000.0
    eps: float = 0.0014
    std: float | tuple[float, ...] = 1.0
    paper: ClassVar[str] = "liang2018odin"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"temperature": 2.0, "eps": 0.01})

    def __post_init__(self) -> None:
        _ = self.perturbation  # checks the parameters

    @property
    def perturbation(self) -> Perturbation:
        """The input perturbation that the tap applies."""
        return Perturbation(self.temperature, self.eps, self.std)

    def reading(self) -> dict[str, Any]:
        """Return the reading of the logits after the perturbation."""
        return {"perturb": self.perturbation.json()}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the mean score."""
        return {"mean": LogitScoreSum(MSP(self.temperature), "perturbed_logits")}

    def result(self, mean: LogitScoreSumState) -> ODINScorer:
        """Return the scorer with the temperature and the number of classes."""
        return ODINScorer(
            value=mean.sum / mean.n,
            n=mean.n,
            range=(-1.0, 0.0),
            conventions={"value": "mean score of the fitted rows"},
            temperature=self.temperature,
            n_classes=mean.n_classes,
        )
