"""An edit fitted on two data sets: with a behaviour, and without it."""

from typing import Any

from sonde.core.inputs import Model
from sonde.run.bundles.fitted import Fitted
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read


def fit_on(
    model: Model, instrument: Any, data: Any, sites: Any, *, progress: bool, **options: Any
) -> Fitted:
    """Return an instrument fitted on data; ``options`` are those of ``sonde.read``."""
    stream = read(model, data, sites=sites, **options)
    return fit(instrument, stream, calibrate=0, progress=progress)
