"""How well fitted detectors separate items, through sonde's public functions."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import torch
from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from torch import Tensor

from sonde import Fitted, fit, read, score
from sonde.core import Instrument
from sonde.metrics import auroc


def fitted_on(
    model: Any, items: Any, detectors: Instrument | Iterable[Instrument], **options: Any
) -> Fitted:
    """Fit detectors on all items; ``options`` are those of ``sonde.read``."""
    return fit(detectors, read(model, items, **options), calibrate=0, progress=False)


def scores_of(
    fitted: Fitted, model: Any, items: Any, **options: Any
) -> dict[tuple[str, str], Tensor]:
    """Return the scores of items by method and site, in the items' order.

    Texts are read in the order of their lengths; items with an ``id`` are put back by it.
    """
    table: pa.Table = score(fitted, model, items, progress=False, **options)
    columns = {name: np.asarray(table[name]) for name in ("id", "instrument", "site", "score")}
    place = {item["id"]: i for i, item in enumerate(items) if isinstance(item, dict)}
    if place:
        order = np.argsort([place[name] for name in columns["id"]], kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
    found: dict[tuple[str, str], Tensor] = {}
    for name in dict.fromkeys(zip(columns["instrument"], columns["site"], strict=True)):
        mine = (columns["instrument"] == name[0]) & (columns["site"] == name[1])
        found[name[0], name[1]] = torch.from_numpy(columns["score"][mine].astype(np.float64))
    return found


def area(usual: Tensor, unusual: Tensor) -> float:
    """Return the AUROC of out-of-distribution against in-distribution scores."""
    label = torch.cat([torch.zeros(len(usual)), torch.ones(len(unusual))]).bool()
    return float(auroc(torch.cat([usual, unusual]), label, resamples=0).value)


def mean_score(many: Sequence[Tensor]) -> Tensor:
    """Return the mean over sites of each item's scores."""
    return torch.stack(list(many)).mean(0)


def rank_correlation(a: Any, b: Any) -> float:
    """Return Spearman's correlation of two lists of numbers; 0 if a list is constant."""
    ranks = [rankdata(np.asarray(v, dtype=np.float64)) for v in (a, b)]
    if min(np.ptp(r) for r in ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
