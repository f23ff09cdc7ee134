"""The check of a live model that comes before its rows are taken, in the process that drives."""

from sonde.core.stream import Stream
from sonde.engine.derived import innermost
from sonde.tap import LiveStream


def check_rows(stream: Stream) -> None:
    """Warn where rows of a live model hang on other examples or on chance, unless told not to."""
    live = innermost(stream)
    if isinstance(live, LiveStream):
        _ = live.checked
