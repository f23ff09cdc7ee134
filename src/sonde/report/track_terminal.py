"""Measures over the steps of a training, as text for a terminal of 80 columns."""

from collections import Counter
from textwrap import wrap
from typing import Any

from sonde.core.result import FLAGS
from sonde.core.wording import plural
from sonde.report._format import number, shown

COLUMNS = 80
MOST_CURVES = 40
ALIKE = 0.9


def track_verdict(found: dict[str, Any]) -> str:
    """Return in a sentence how long the track is and which curve changed most for its size.

    Parameters
    ----------
    found : dict
        JSON of a track, ``sonde-track/1``.
    """
    steps, curves = found["steps"], found["curves"]
    first, last = steps[0], steps[-1]
    numbers = [c for c in curves if "low" not in c]
    n_sites = len({c["site"] for c in numbers or curves})
    text = f"{plural(len(steps), 'step')}, {first:,} to {last:,}, at {plural(n_sites, 'site')}."
    changed = [(abs(_change(c)), c) for c in numbers if _ends(c) is not None]
    if len(steps) < 2 or not changed:
        return text
    most = max(changed, key=lambda pair: pair[0])[1]
    low, high = _ends(most) or (0.0, 0.0)
    return (
        f"{text} {most['method']} at {shown(most['site'], 60)} changed most for its size: "
        f"{number(low)} to {number(high)}."
    )


def track_to_text(found: dict[str, Any]) -> str:
    """Return the verdict and a line for each curve: first and last value, and the extremes."""
    lines = [*wrap(track_verdict(found), COLUMNS), ""]
    head = f"{'site':<26}{'first':>11}{'last':>11}{'least':>11}{'largest':>11}{'at step':>10}"
    methods = dict.fromkeys(c["method"] for c in found["curves"])
    left = MOST_CURVES
    for method in methods:
        mine = [c for c in found["curves"] if c["method"] == method]
        width = max((c["entries"] for c in mine if "low" in c), default=0)
        named = f"{method} (medians of up to {width:,} entries)" if width else method
        lines += [named, head, *(_line(c, found["steps"]) for c in mine[: max(left, 0)])]
        lines += [line for said in flags_said(mine) for line in wrap(said, COLUMNS)] + [""]
        left -= len(mine)
    lines += [f"and {plural(-left, 'more curve')}: -o track.html shows all", ""] if left < 0 else []
    lines += _across(found["across_steps"])
    return "\n".join(lines).rstrip("\n")


def _across(sites: list[dict[str, Any]]) -> list[str]:
    """Return a line for each site: how its rows at each step compare with those at the last."""
    if not sites:
        return []
    last = sites[0]["steps"][-1]
    head = f"{'site':<26}{'first CKA':>11}{ALIKE:>12g} from{'read first':>13}{'lateness':>13}"
    lines = [f"each step against step {last:,}, by {plural(sites[0]['n'], 'row')}", head]
    for one in sites:
        reached = _settled(one["steps"], one["to_last"])
        told = one["explained"]
        cells = (
            f"{number(one['to_last'][0]):>11}",
            f"{reached:>17,}",
            f"{'–' if told is None else number(told[0]):>13}",
            f"{'–' if told is None else number(one['lateness']):>13}",
        )
        lines.append(f"{_short(one['site']):<26}{''.join(cells)}")
    said = (
        "CKA of the first step's rows with the last's; the step from which it stays above "
        f"{ALIKE:g}; the share of the last step's features that the first step's rows tell, and "
        "the mean share that earlier steps lack."
    )
    return [*lines, *wrap(said, COLUMNS), ""]


def _settled(steps: list[int], alike: list[float | None]) -> int:
    """Return the first step from which all are at least so much like the last."""
    late = [i for i, value in enumerate(alike) if value is None or value < ALIKE]
    return steps[min(late[-1] + 1, len(steps) - 1)] if late else steps[0]


def _short(site: str) -> str:
    name = shown(site)
    return name if len(name) <= 25 else f"…{name[-24:]}"


def flags_said(curves: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each flag that results of these curves carry at some step."""
    flags = [flag for c in curves for flag in c.get("flags", ())]
    return [
        f"Flag {flag} at {plural(n, 'site')}: {FLAGS[flag]}." for flag, n in Counter(flags).items()
    ]


def _ends(curve: dict[str, Any]) -> tuple[float, float] | None:
    known = [v for v in curve["values"] if v is not None]
    return (known[0], known[-1]) if len(known) > 1 else None


def _change(curve: dict[str, Any]) -> float:
    """Return the change from first to last, over the larger of the two sizes."""
    first, last = _ends(curve) or (0.0, 0.0)
    size = max(abs(first), abs(last))
    return (last - first) / size if size else 0.0


def _line(curve: dict[str, Any], steps: list[int]) -> str:
    name = _short(curve["site"])
    known = [(v, s) for v, s in zip(curve["values"], steps, strict=True) if v is not None]
    if not known:
        return f"{name:<26}{'–':>11}"
    first, last, least, largest = known[0], known[-1], min(known), max(known)
    cells = "".join(f"{number(v):>11}" for v, _ in (first, last, least, largest))
    return f"{name:<26}{cells}{largest[1]:>10,}"
