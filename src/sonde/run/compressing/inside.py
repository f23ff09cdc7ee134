"""Compare the hidden states of a smaller model with the original's, site by site."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.inputs import Inputs, Model
from sonde.measure import CKA
from sonde.tap import live_stream

MOST_ROWS, MOST_BYTES = 4096, 2**28
"""Rows of a site that are compared, and bytes of all that are held."""


@dataclass(frozen=True)
class SiteFidelity:
    """Distance between the states of two models at one site.

    Parameters
    ----------
    site : str
    n : int
        Rows that were compared.
    error : float
        Squared length of the differences, divided by the squared length of the original's rows.
        This and the cosines are NaN if the site has another number of channels now.
    cosine, cosine_5 : float
        Between the two states of a row: mean and 5 % quantile.
    cka : float
        Linear centred kernel alignment, debiased; NaN for fewer than 4 rows.
    """

    site: str
    n: int
    error: float
    cosine: float
    cosine_5: float
    cka: float

    def json(self) -> dict[str, Any]:
        """Return the measurements by name."""
        return asdict(self)


def inside(
    model: Model,
    changed: nn.Module,
    inputs: Inputs,
    renamed: Callable[[str], str | None] = lambda name: name,
) -> list[SiteFidelity]:
    """Return the distance between the states of a changed model and of the original at each block.

    Both models read the same examples; a text has a row for each token. At most 4,096 rows of a
    site are taken, fewer if all sites together would need more than 256 MiB. Blocks that are gone
    are left out.

    Parameters
    ----------
    model : Model
    changed : nn.Module
    inputs : Inputs
    renamed : callable, optional
        From a module's name to its name in the changed model, None if it is gone.
    """
    reducer = "tokens" if model.task in ("causal", "seq2seq") else "auto"
    every = live_stream(model, inputs, reducer=reducer, logits=False)
    places = {kind.site: renamed(kind.site.path) for kind in every.schema}
    sites = [site for site, place in places.items() if place is not None]
    if not sites:
        return []
    others = [replace(site, path=places[site] or "") for site in sites]
    first = live_stream(model, inputs, sites, reducer, logits=False)
    other = replace(model, module=changed)
    sinks = str(first.found_sinks)
    second = live_stream(other, inputs, others, reducer, logits=False, sinks=sinks)
    keys = {kind.key: kind.site for kind in first.schema}
    ends = {str(kind.site): kind.key for kind in second.schema}
    same = {key: ends[str(replace(site, path=places[site] or ""))] for key, site in keys.items()}
    widths = sum(kind.dim for kind in first.schema)
    limit = max(64, min(MOST_ROWS, MOST_BYTES // (8 * widths)))
    pairs_of: dict[str, list[tuple[Tensor, Tensor]]] = {kind.key: [] for kind in first.schema}
    counts = dict.fromkeys(pairs_of, 0)
    streams = (stream.batches(0, len(stream)) for stream in (first, second))
    for one, other in zip(*streams, strict=True):
        for key, pairs in pairs_of.items():
            room = limit - counts[key]
            pairs.append((one.rows[key][:room].cpu(), other.rows[same[key]][:room].cpu()))
            counts[key] += len(pairs[-1][0])
        if min(counts.values()) >= limit:
            break
    return [_compared(key, pairs) for key, pairs in pairs_of.items()]


def _compared(site: str, pairs: list[tuple[Tensor, Tensor]]) -> SiteFidelity:
    x, y = (torch.cat(parts).double() for parts in zip(*pairs, strict=True))
    energy, missing = float(x.square().sum()), torch.full((1,), float("nan"))
    alike = x.shape == y.shape  # else channels were left out, and only the geometry compares
    cosine = nn.functional.cosine_similarity(x, y, dim=1) if alike else missing
    return SiteFidelity(
        site=site,
        n=len(x),
        error=float((y - x).square().sum()) / energy if energy and alike else float("nan"),
        cosine=float(cosine.mean()),
        cosine_5=float(cosine.quantile(0.05)),
        cka=float(CKA().fit(x, y=y)) if len(x) >= CKA.least_rows else float("nan"),
    )
