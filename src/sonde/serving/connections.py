"""Limits on connections of a server on this machine: their number, and how slowly a request starts.

uvicorn limits neither: a client that never ends its headers would keep its connection for ever.
"""

import asyncio
import time
from typing import Any

from sonde.serving.limits import Limits

ANSWER = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
BUSY = ANSWER % b"503 Service Unavailable" + (
    b'{"error": "Too many connections are open. Close connections that are idle, or wait."}'
)
SLOW = ANSWER % b"408 Request Timeout" + (
    b'{"error": "The headers of the request took too long. Send them at once."}'
)


def limited_protocol(
    limits: Limits,
    *,
    config: Any,
    server_state: Any,
    app_state: dict[str, Any],
    _loop: Any = None,
) -> asyncio.Protocol:
    """Return uvicorn's protocol for a new connection, under limits.

    Parameters
    ----------
    limits : Limits
    config, server_state, app_state, _loop
        What uvicorn gives to a protocol.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    if len(server_state.connections) >= limits.connections:
        return _Refused()
    protocol_class: Any = AutoHTTPProtocol
    protocol = protocol_class(
        config=config, server_state=server_state, app_state=app_state, _loop=_loop
    )
    _look(protocol, limits.head_seconds, time.monotonic(), asyncio.get_running_loop())
    return protocol


class _Refused(asyncio.Protocol):
    """A connection that is answered with 503 at once."""

    def connection_made(self, transport: Any) -> None:
        """Answer and close."""
        transport.write(BUSY)
        transport.close()


def _look(protocol: Any, seconds: float, since: float, loop: asyncio.AbstractEventLoop) -> None:
    """Close a connection whose request has not begun in time; else look again later.

    uvicorn itself ends connections that are idle between two requests.
    """
    transport, now = protocol.transport, time.monotonic()
    if transport is not None:
        if transport.is_closing():
            return
        if not _waits_for_head(protocol):
            since = now
        elif now - since >= seconds:
            transport.write(SLOW)
            transport.close()
            return
    loop.call_later(seconds / 4, _look, protocol, seconds, since, loop)


def _waits_for_head(protocol: Any) -> bool:
    """Return whether a connection has begun a request, or none yet, and not ended its headers."""
    cycle = protocol.cycle
    answers = cycle is not None and not cycle.response_complete
    return not answers and protocol.timeout_keep_alive_task is None
