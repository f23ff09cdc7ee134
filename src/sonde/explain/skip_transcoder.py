"""A linear map and few features that together rebuild one site from another."""

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
class SkipTranscoder(Instrument):
    """A transcoder with a linear map beside its features: they stand for what is not linear.

    ``y = act(encoder x + bias) decoder + offset + skip x``. The map begins as that of least
    squares, so without features (``features=0``) a linear layer is explained exactly.

    Range        [0, inf), share of the variance; lower = better.
    Cost         as ``Transcoder``, and 8 dim (dim + dim_out) bytes.
    Assumes      rows of both sites that correspond. Trained by steps: it cannot merge.

    Parameters
    ----------
    features, k, act, passes, batch, rate, penalty, dead_after, mixed, seed
        As for ``SparseAutoencoder``.

    References
    ----------
    paulo2025transcoders
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
    paper: ClassVar[str] = "paulo2025transcoders"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"features": 4, "k": 2, "batch": 16, "mixed": 2, "rate": 1e-2},
        {"k": 2, "batch": 16, "mixed": 2, "rate": 1e-2, "features": 0},
    )

    def __post_init__(self) -> None:
        check_parameters(self, least_features=0)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read a training."""
        return {"trained": PairTraining(**parameters_of(self), skip=True)}

    def result(self, trained: DictionaryState) -> Dictionary:
        """Fold the scales into the trained dictionary and its map."""
        return folded(self, trained, PairTraining(**parameters_of(self), skip=True))
