"""Header of a file of served traffic: its time spans, and the reason for each span's end."""

from typing import Any, Final

TRAFFIC: Final = "traffic"
"""Field of the header."""


def joined_traffic(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Return the joined traffic field of two headers, empty if neither has one."""
    records = [header[TRAFFIC] for header in (a, b) if header.get(TRAFFIC)]
    if not records:
        return {}
    spans = [span for one in records for span in one["spans"]]
    seconds = max(one["commit_seconds"] for one in records)
    name = "+".join(one["name"] for one in records)
    joined = {"name": name, "commit_seconds": seconds}
    return {TRAFFIC: {**joined, "spans": sorted(spans, key=lambda span: span["begin"])}}
