"""Check a live model before its rows are read, in the driver process."""

from sonde.core.stream import Stream
from sonde.engine.derived import innermost
from sonde.tap import LiveStream


def check_rows(stream: Stream) -> None:
    """Warn if rows of a live model depend on other examples or on chance, unless checks are off."""
    live = innermost(stream)
    if isinstance(live, LiveStream):
        _ = live.checked
