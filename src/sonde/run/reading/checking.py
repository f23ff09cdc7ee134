"""The check of a live model that comes before its rows are taken, in the process that drives."""

from sonde.core.stream import Stream
from sonde.engine.derived import innermost
from sonde.tap import LiveStream


def check_rows(stream: Stream) -> None:
    """Warn if rows of a live model depend on other examples or on chance, unless checks are off."""
    live = innermost(stream)
    if isinstance(live, LiveStream):
        _ = live.checked
