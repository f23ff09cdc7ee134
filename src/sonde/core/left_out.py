"""Sites that are not read by default, and the reasons."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sonde.core.wording import plural


@dataclass(frozen=True)
class LeftOut:
    """One site that is not read.

    Parameters
    ----------
    site : str
        Its text.
    reason : str
        What is missing to read the site, in one or two sentences.
    """

    site: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its site and value, so that sites can be counted by reason."""
        return self.reason.partition(" at ")[0].partition(", got ")[0].rstrip(".")

    def json(self) -> dict[str, str]:
        """Return the site and the reason."""
        return asdict(self)


def left_out_text(entries: Sequence[LeftOut]) -> str:
    """Return the number of skipped sites and the most frequent reason, in one line.

    Examples
    --------
    >>> left_out_text([LeftOut("lstm:out", "expected one feature axis at lstm:out, got two.")])
    '1 site (lstm): expected one feature axis'
    """
    kind, n = Counter(entry.kind for entry in entries).most_common(1)[0]
    first = next(entry for entry in entries if entry.kind == kind).site.removesuffix(":out")
    such = f"such as {first}" if len(entries) > 1 else first
    of_them = f", {n:,} of them" if n < len(entries) else ""
    return f"{plural(len(entries), 'site')} ({such}{of_them}): {kind}"
