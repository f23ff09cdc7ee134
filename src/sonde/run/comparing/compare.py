"""Compare two models layer by layer on the same inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sonde.core.inputs import Model
from sonde.run.comparing.two_models import RowSample, TwoModels, compare_models
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read


def compare(
    model: Model | nn.Module,
    other: Model | nn.Module,
    data: Any,
    *,
    other_sites: str | Sequence[str] | None = None,
    running: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> TwoModels:
    """Compare the states of two models on the same data.

    Parameters
    ----------
    model, other : Model or nn.Module
    data : anything that ``sonde.read`` takes
    other_sites : pattern or several, optional
        Sites of ``other``; by default those of ``model``.
    running : mapping, optional
        Options of ``sonde.fit``: ``workers``, ``memory``.
    progress : bool, default=True
    **options
        Of ``sonde.read``.

    Raises
    ------
    InputError
        If fewer than 16 rows are in both.
    """
    there = options if other_sites is None else {**options, "sites": other_sites}
    fits = [
        fit(RowSample(), read(one, data, **how), progress=progress, **(running or {}))
        for one, how in ((model, options), (other, there))
    ]
    return compare_models(fits[0], fits[1], progress=progress)
