"""Handlers of requests whose errors become answers, and whose times and statuses are counted."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from sonde.serving.refusals import frames_of
from sonde.serving.service import Service

Handler = Callable[[Request], Awaitable[Response]]
_log = logging.getLogger("sonde")


def guarded(
    service: Service,
    route: str,
    handler: Handler,
    refused: Callable[[Exception], Response | None],
    failed: Callable[[], Response],
) -> Handler:
    """Wrap a handler: each error becomes an answer, and the request is counted.

    Parameters
    ----------
    service : Service
        Counts the requests.
    route : str
        Name under which the requests are counted.
    handler : callable
        What answers a request.
    refused : callable
        Answer for a refusal; None for an error that nobody foresaw, which is logged.
    failed : callable
        Answer for an error that nobody foresaw.
    """

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            answer = refused(error)
            if answer is not None:
                return answer
            _log.error("%s failed: %s", route, frames_of(error))
            return failed()

    async def counted(request: Request) -> Response:
        began, code = time.perf_counter(), 500
        try:
            answer = await answered(request)
            code = answer.status_code
            return answer
        except asyncio.CancelledError:
            code = 499
            raise
        finally:
            service.counted(route, code, time.perf_counter() - began)

    return counted
