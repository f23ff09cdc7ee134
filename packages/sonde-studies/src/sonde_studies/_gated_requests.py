"""Requests to forget as adapters with gates, several of them in place at once."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import sonde
from sonde import Model
from sonde.edit import LowRankAdapter
from sonde.tap import Gate

Request = tuple[LowRankAdapter, Gate | None]


@contextmanager
def requested(model: Model, requests: Sequence[Request], site: str) -> Iterator[None]:
    """Edit a model by each request's adapter in turn, always or where its gate is open."""
    with ExitStack() as stack:
        for adapter, gate in requests:
            stack.enter_context(sonde.editing(model, adapter, site, gate=gate))
        yield
