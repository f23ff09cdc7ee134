"""Common inputs of measures: a sample of rows, or the moments of two sites."""

from typing import Any, ClassVar

from sonde.core.instrument import Instrument, NotLabelled, Read
from sonde.core.statistic import Span, Statistic
from sonde.stats import CrossMoments, HashSample, HashSampleState, Moments


class CrossInstrument(Instrument):
    """A measure of two sites' covariances and of the covariance between their units."""

    span: ClassVar[Span] = "pair"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for each site's moments and the cross moments."""
        return {"cross": CrossMoments(), "each": Moments()}


class SampleInstrument(Instrument):
    """A measure of ``m`` sampled rows of a site; a subclass has the parameter ``m``."""

    m: int

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the sample."""
        return {"sample": HashSample(self.m)}


class PairSampleInstrument(Instrument):
    """A measure of ``m`` sampled rows of each site; a subclass has the parameter ``m``."""

    m: int
    span: ClassVar[Span] = "pair"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for each site's sample."""
        return {"samples": HashSample(self.m)}


def labelled_sample(m: int) -> dict[str, Read]:
    """Return the requests for ``m`` sampled labelled ``rows``, and for their ``labels``.

    ``every`` counts all rows, for ``unlabelled``.
    """
    labelled = NotLabelled(-1)
    return {
        "rows": Read(HashSample(m), labelled),
        "labels": Read(HashSample(m, "label"), labelled),
        "every": Read(HashSample(1)),
    }


def unlabelled(rows: HashSampleState, every: HashSampleState | None) -> tuple[str, ...]:
    """Return the flag ``unlabelled`` if rows without a label were skipped."""
    return ("unlabelled",) if every is not None and every.n > rows.n else ()
