"""Features that two sites, or two models, share, and those of one alone."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.core.instrument import Instrument
from sonde.core.statistic import Span, Statistic
from sonde.explain._codes import Act
from sonde.explain._dictionary_training import DictionaryState, PairTraining
from sonde.explain.dictionary import Dictionary
from sonde.explain.sparse_autoencoder import check_parameters, folded, parameters_of


@final
@dataclass(frozen=True)
class Crosscoder(Instrument):
    """Share of the variance of two sites that few features of both together leave unexplained.

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
    features, k, act, passes, batch, rate, penalty, dead_after, mixed, seed
        As for ``SparseAutoencoder``; ``features`` None is 8 for each unit of both sites.

    References
    ----------
    lindsey2024crosscoders
    """

    features: int | None = None
    k: int = 32
    act: Act = "topk"
    passes: int = 1
    batch: int = 4096
    rate: float | None = None
    penalty: float = 1.0
    dead_after: int | None = None
    mixed: int = 4
    seed: int = 0
    span: ClassVar[Span] = "pair"
    estimates: ClassVar[bool] = False
    paper: ClassVar[str] = "lindsey2024crosscoders"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"features": 4, "k": 2, "batch": 16, "mixed": 2, "rate": 1e-2},
        {"features": 4, "k": 2, "batch": 16, "mixed": 2, "rate": 1e-2, "act": "relu"},
    )

    def __post_init__(self) -> None:
        check_parameters(self)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read a training."""
        return {"trained": PairTraining(**parameters_of(self), both=True)}

    def result(self, trained: DictionaryState) -> Dictionary:
        """Fold the scales into the trained dictionary."""
        return folded(self, trained, PairTraining(**parameters_of(self), both=True))
