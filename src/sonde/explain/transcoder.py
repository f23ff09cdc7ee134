"""Features of one site that rebuild another: what a layer does, in few terms."""

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
class Transcoder(Instrument):
    """Share of the variance of one site that few features of another one leave unexplained.

    Read at a layer's input and at its output, the features stand for what the layer does:
    ``y = act(encoder x + bias) decoder + offset``.

    Range        [0, inf), share of the variance; lower = better; 1 = no better than the mean.
    Cost         as ``SparseAutoencoder``, of both widths.
    Assumes      rows of both sites that correspond. Trained by steps: it cannot merge.

    Parameters
    ----------
    features, k, act, passes, batch, rate, penalty, dead_after, mixed, seed
        As for ``SparseAutoencoder``.

    References
    ----------
    dunefsky2024transcoders
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
    paper: ClassVar[str] = "dunefsky2024transcoders"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"features": 4, "k": 2, "batch": 16, "mixed": 2, "rate": 1e-2},
        {"features": 4, "k": 2, "batch": 16, "mixed": 2, "rate": 1e-2, "act": "jumprelu"},
    )

    def __post_init__(self) -> None:
        check_parameters(self)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read a training."""
        return {"trained": PairTraining(**parameters_of(self))}

    def result(self, trained: DictionaryState) -> Dictionary:
        """Fold the scales into the trained dictionary."""
        return folded(self, trained, PairTraining(**parameters_of(self)))
