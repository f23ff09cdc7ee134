"""A bearer token for every address except health checks, compared in constant time."""

import base64
import binascii
import hmac
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from sonde.core.errors import InputError

HEALTH = ("/v2/health/live", "/v2/health/ready")
SHORTEST = 16


def read_token(path: str | Path) -> str:
    """Return the token in the first line of a file.

    Raises
    ------
    InputError
        If there is no such file, or the token is short or no plain ASCII.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--token-file: there is no file {path}.")
    token = path.read_bytes()[:4096].partition(b"\n")[0].strip()
    if len(token) < SHORTEST or not token.isascii() or any(c <= 32 for c in token):
        raise InputError(
            f"--token-file: expected a token of at least {SHORTEST} letters, digits and signs in "
            f"{path}. Create a token: openssl rand -hex 32 > {path}"
        )
    return token.decode()


class TokenMiddleware:
    """ASGI middleware that admits requests with the token.

    Programs send ``Authorization: Bearer TOKEN``. A browser asks for a password, which is the
    token, and may only read with it: forms of other pages cannot act in its name.
    """

    def __init__(self, app: Any, token: str) -> None:
        self.app, self._token = app, token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it with 401."""
        if scope["type"] == "lifespan" or path_in(scope) in HEALTH or self._may(scope):
            await self.app(scope, receive, send)
            return
        answer = JSONResponse(
            {"error": "Expected the header 'Authorization: Bearer TOKEN' with the server's token."},
            401,
            {"WWW-Authenticate": 'Bearer, Basic realm="sonde"', "Connection": "close"},
        )
        await answer(scope, receive, send)

    def _may(self, scope: Any) -> bool:
        given = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
        if len(given) != 1:
            return False
        kind, _, value = given[0].partition(b" ")
        token = value.strip()
        if kind.lower() == b"basic" and scope.get("method") in ("GET", "HEAD"):
            try:
                token = base64.b64decode(token, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != b"bearer":
            return False
        return hmac.compare_digest(token, self._token)


def path_in(scope: Any) -> str:
    """Return a request's path relative to the application's mount point."""
    path, root = scope.get("path", ""), scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(root) else path
