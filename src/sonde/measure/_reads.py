"""What most measures read: a sample of the rows, or the moments of two sites."""

from typing import Any, ClassVar

from sonde.core.instrument import Instrument, NotLabelled, Read
from sonde.core.statistic import Span, Statistic
from sonde.stats import CrossMoments, HashSample, HashSampleState, Moments


class CrossInstrument(Instrument):
    """A figure of the covariances within two sites and between the units of the two."""

    span: ClassVar[Span] = "pair"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of each site and their cross moments."""
        return {"cross": CrossMoments(), "each": Moments()}


class SampleInstrument(Instrument):
    """A figure of ``m`` sampled rows of a site; a subclass has ``m`` as a parameter."""

    m: int

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the sample."""
        return {"sample": HashSample(self.m)}


class PairSampleInstrument(Instrument):
    """A figure of ``m`` sampled rows of each site; a subclass has ``m`` as a parameter."""

    m: int
    span: ClassVar[Span] = "pair"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the sample of each site."""
        return {"samples": HashSample(self.m)}


def labelled_sample(m: int) -> dict[str, Read]:
    """Return the reads of ``m`` sampled ``rows`` that have a label, and of their ``labels``.

    ``every`` counts all rows, for ``unlabelled``.
    """
    labelled = NotLabelled(-1)
    return {
        "rows": Read(HashSample(m), labelled),
        "labels": Read(HashSample(m, "label"), labelled),
        "every": Read(HashSample(1)),
    }


def unlabelled(rows: HashSampleState, every: HashSampleState | None) -> tuple[str, ...]:
    """Return the flag ``unlabelled`` if rows were left out because they have no label."""
    return ("unlabelled",) if every is not None and every.n > rows.n else ()
