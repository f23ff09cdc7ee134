"""Limits of a server: sizes, counts and times, each with a safe default."""

from dataclasses import dataclass
from typing import final

from sonde.core.ranges import check_ranges


@final
@dataclass(frozen=True)
class Limits:
    """Sizes, counts and times beyond which a request is refused.

    Parameters
    ----------
    body_bytes : int, default=8 MiB
        Largest body of a request, in bytes; larger requests are answered with 413.
    body_seconds : float, default=10.0
        Until the body of a request has arrived (408).
    inputs : int, default=256
        Inputs of one request (413).
    tokens : int or None, default=None
        Tokens of one text (413); None is what the model reads at once.
    pixels : int, default=16,000,000
        Pixels of one picture, before it is decoded (413).
    batch : int, default=32
        Inputs of one forward at most, at most 32.
    wait_seconds : float, default=0.0
        How long the oldest input waits for others to share its forward pass. Inputs gather while
        the model works, so that 0 costs no throughput where every client waits for its answer.
    queue : int, default=1024
        Inputs that wait at most (429 beyond).
    head_seconds : float, default=10.0
        Until the headers of a request have arrived (408).
    connections : int, default=512
        Connections that are open at most (503 beyond).
    drain_seconds : float, default=20.0
        How long requests in progress are waited for when the server stops.
    """

    body_bytes: int = 8 * 2**20
    body_seconds: float = 10.0
    inputs: int = 256
    tokens: int | None = None
    pixels: int = 16_000_000
    batch: int = 32
    wait_seconds: float = 0.0
    queue: int = 1024
    head_seconds: float = 10.0
    connections: int = 512
    drain_seconds: float = 20.0

    def __post_init__(self) -> None:
        positive = ("body_bytes", "body_seconds", "inputs", "pixels", "batch", "queue",
                    "head_seconds", "connections")  # fmt: skip
        check_ranges(self, **dict.fromkeys(positive, "> 0"), wait_seconds=">= 0")
        check_ranges(self, batch="[1, 32]")
