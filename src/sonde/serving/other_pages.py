"""Requests that pages of other sites make a browser send are refused.

A form of any page can post to a server on this machine: its inputs would count as traffic.
"""

from typing import Any

from starlette.responses import JSONResponse

OWN = (b"same-origin", b"none")
READING = ("GET", "HEAD", "OPTIONS")


class OwnPagesMiddleware:
    """ASGI middleware that refuses what pages of other origins send; programs send no origin."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it with 403."""
        if scope["type"] != "http" or scope["method"] in READING or _is_own(scope["headers"]):
            await self.app(scope, receive, send)
            return
        answer = JSONResponse(
            {
                "error": "Expected a request of a program or of this server's own pages, got a "
                "request of another web page. Start the server with --token-file, and send the "
                "token."
            },
            403,
            {"Connection": "close"},
        )
        await answer(scope, receive, send)


def _is_own(headers: Any) -> bool:
    """Return whether a request comes from no page, or from a page of this server."""
    values = dict(headers)
    if values.get(b"sec-fetch-site", b"none") not in OWN:
        return False
    origin = values.get(b"origin")
    return origin is None or origin.partition(b"://")[2] == values.get(b"host", b"")
