"""A linear map and a few features that together reconstruct one site from another."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.core.statistic import Span
from sonde.explain._dictionary_learner import DictionaryLearner
from sonde.explain._dictionary_training import PairTraining


@final
@dataclass(frozen=True)
class SkipTranscoder(DictionaryLearner):
    """A transcoder with a linear skip map: its features represent the nonlinear rest.

    ``y = act(encoder x + bias) decoder + offset + skip x``. The map begins as that of least
    squares, so without features (``features=0``) a linear layer is explained exactly.

    Range        [0, inf), share of the variance; lower = better.
    Cost         as ``Transcoder``, and 8 dim (dim + dim_out) bytes.
    Assumes      rows of both sites that correspond. Trained by steps: it cannot merge.

    Parameters
    ----------
    features, k, act, passes, batch, rate, penalty, dead_after, mixed, patience, seed
        Settings of the dictionary and its training, as in ``SparseAutoencoder``.

    References
    ----------
    paulo2025transcoders
    """

    span: ClassVar[Span] = "pair"
    least_features: ClassVar[int] = 0
    paper: ClassVar[str] = "paulo2025transcoders"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"features": 4, "k": 2, "batch": 16, "mixed": 2, "rate": 1e-2},
        {"k": 2, "batch": 16, "mixed": 2, "rate": 1e-2, "features": 0},
    )

    def training(self) -> PairTraining:
        """Return the training configuration with the method's parameters."""
        return PairTraining(**self.settings, skip=True)
