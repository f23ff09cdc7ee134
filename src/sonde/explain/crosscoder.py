"""Features that two sites, or two models, share, and features of only one of the two."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.core.statistic import Span
from sonde.explain._dictionary_learner import DictionaryLearner
from sonde.explain._dictionary_training import PairTraining


@final
@dataclass(frozen=True)
class Crosscoder(DictionaryLearner):
    """Fraction of the variance of two sites that few joint features leave unexplained.

    ``z = act(sum_s encoder_s x_s + bias)`` rebuilds every site, ``x_s = z decoder_s + offset_s``.
    Between layers, or between two models, ``shares`` says at which of them each feature lives.

    Range        [0, inf), share of the variance of both sites; lower = better.
    Cost         as ``SparseAutoencoder``, of both widths together.
    Assumes      rows of both sites that correspond. Trained by steps: it cannot merge. A feature
                 that looks as if it lived at one site alone may be one whose other part was shrunk:
                 scale it anew on rows of that site before it is believed.
    Differs      from the paper: two sites.

    Parameters
    ----------
    features, k, act, passes, batch, rate, penalty, dead_after, mixed, patience, seed
        Settings of the dictionary and its training, as in ``SparseAutoencoder``; ``features`` None
        is 8 for each unit of both sites.

    References
    ----------
    lindsey2024crosscoders
    """

    span: ClassVar[Span] = "pair"
    paper: ClassVar[str] = "lindsey2024crosscoders"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"features": 4, "k": 2, "batch": 16, "mixed": 2, "rate": 1e-2},
        {"features": 4, "k": 2, "batch": 16, "mixed": 2, "rate": 1e-2, "act": "relu"},
    )

    def training(self) -> PairTraining:
        """Return the training configuration with the method's parameters."""
        return PairTraining(**self.settings, both=True)
