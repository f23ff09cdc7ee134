"""Small requests that arrive together, prepared in one call."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice
from typing import final

from sonde.data.sources import Row
from sonde.serving.refusals import Refusal
from sonde.serving.served import Item

Rows = Sequence[Row | Refusal]
Keys = Sequence[bytes]
Prepare = Callable[[Rows, Keys, Keys], list[Item | Refusal]]


@final
class Preparing:
    """Gathers the requests of one turn of the event loop.

    A call of a tokenizer costs about as much as the words of a text, and each call hands the
    interpreter to the thread of the model, so one call for all of them costs less.

    Parameters
    ----------
    prepare : callable
        From rows, their keys and their callers to items or refusals, one for each row.
    """

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._waiting: list[tuple[Rows, Keys, Keys, asyncio.Future[list[Item | Refusal]]]] = []

    async def items(self, rows: Rows, keys: Keys, callers: Keys) -> list[Item | Refusal]:
        """Return the items of one request, or why an input of it is refused.

        Parameters
        ----------
        rows : sequence of Row or Refusal
        keys : sequence of bytes
            16 bytes for each row that reveal nothing about it.
        callers : sequence of bytes
            A hash of the name of each row's caller.
        """
        loop = asyncio.get_running_loop()
        items = loop.create_future()
        self._waiting.append((rows, keys, callers, items))
        if len(self._waiting) == 1:
            loop.call_soon(self._run)
        return await items

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        rows = [row for request in waiting for row in request[0]]
        keys = [key for request in waiting for key in request[1]]
        callers = [caller for request in waiting for caller in request[2]]
        try:
            items = iter(self._prepare(rows, keys, callers))
        except Exception as error:  # each request reports it
            for *_, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for own_rows, *_, future in waiting:
            part = [*islice(items, len(own_rows))]
            if not future.done():
                future.set_result(part)
