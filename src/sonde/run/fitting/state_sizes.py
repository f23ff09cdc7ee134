"""Sizes in bytes of a bundle's states, and the methods that read them."""

from typing import Any

from sonde.core.state import size_bytes
from sonde.engine.requests import requests
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import word_of
from sonde.run.instruments.stages import last_task
from sonde.run.instruments.tasks import requests_of


def state_sizes(bundle: Fitted) -> list[dict[str, Any]]:
    """Return one entry for each state: site, statistic, part of the data, bytes, readers.

    Examples
    --------
    >>> import torch
    >>> from sonde.core import Stream
    >>> from sonde.detect import Hotelling
    >>> from sonde.run.fitting.fit import fit
    >>> rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> fitted = fit(Hotelling(), Stream.of(rows), progress=False)
    >>> [(s["statistic"], s["bytes"], s["read_by"]) for s in state_sizes(fitted)]
    [('Moments', 160, ['hotelling'])]
    """
    readers: dict[str, set[str]] = {}
    for task in bundle.tasks:
        last = last_task(task, bundle.states, bundle.split)
        for name in requests([task, last], bundle.split):
            readers.setdefault(name, set()).add(word_of(task.instrument))
    for name in requests_of((), bundle.sample, bundle.split):
        readers.setdefault(name, set())
    sizes: list[dict[str, Any]] = []
    for name, request in bundle.requests.items():
        state = bundle.states.get(name)
        sizes.append(
            {
                "site": " & ".join(request.keys),
                "statistic": type(request.statistic).__name__,
                "part": request.part,
                "bytes": 0 if state is None else size_bytes(state),
                "read_by": sorted(readers.get(name, ())) or ["error bars"],
            }
        )
    order = {site["text"]: i for i, site in enumerate(bundle.header["sites"])}
    return sorted(sizes, key=lambda s: (order.get(s["site"].split(" & ")[0], 0), -s["bytes"]))
