"""Features of one site that reconstruct another: a sparse description of a layer."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.core.statistic import Span
from sonde.explain._dictionary_learner import DictionaryLearner
from sonde.explain._dictionary_training import PairTraining


@final
@dataclass(frozen=True)
class Transcoder(DictionaryLearner):
    """Fraction of the variance of a site that few features of another site leave unexplained.

    Read at a layer's input and at its output, the features stand for what the layer does:
    ``y = act(encoder x + bias) decoder + offset``.

    Range        [0, inf), share of the variance; lower = better; 1 = no better than the mean.
    Cost         as ``SparseAutoencoder``, of both widths.
    Assumes      rows of both sites that correspond. Trained by steps: it cannot merge.

    Parameters
    ----------
    features, k, act, passes, batch, rate, penalty, dead_after, mixed, patience, seed
        Settings of the dictionary and its training, as in ``SparseAutoencoder``.

    References
    ----------
    dunefsky2024transcoders
    """

    span: ClassVar[Span] = "pair"
    paper: ClassVar[str] = "dunefsky2024transcoders"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"features": 4, "k": 2, "batch": 16, "mixed": 2, "rate": 1e-2},
        {"features": 4, "k": 2, "batch": 16, "mixed": 2, "rate": 1e-2, "act": "jumprelu"},
    )

    def training(self) -> PairTraining:
        """Return the training configuration with the method's parameters."""
        return PairTraining(**self.settings)
