"""An atlas in the terminal: what was found, and the units with the clearest labels."""

from collections.abc import Mapping
from typing import Any, Final

from sonde.report._format import number, plural, share

MOST: Final = 10


def units_verdict(found: dict[str, Any]) -> str:
    """Return one sentence: how many units there are, how many have a label, how many are dead."""
    what = "feature" if found["dictionary"] else "unit"
    n = len(found["units"])
    dead = sum(len(u["histogram"]["counts"]) == 1 for u in found["units"])
    said = f"{plural(n, what)} at {found['site']} over {plural(found['n'], 'row')}"
    if found["labelled"] is not None:
        said += f"; {share(found['labelled'])} follow a label"
    said += f"; {dead:,} never change" if dead else ""
    said += f"; {loss_text(found['loss'])}" if found["loss"] else ""
    return f"{said}."


def loss_text(loss: Mapping[str, Any]) -> str:
    """Return in words how much of a model's loss the states that a dictionary rebuilds recover."""
    of = "an unknown share" if loss["value"] is None else share(loss["value"])
    return (
        f"rebuilt states recover {of} of the loss ({number(loss['rebuilt'])} nats; "
        f"{number(loss['clean'])} as it is, {number(loss['mean'])} at the mean)"
    )


def units_to_text(found: dict[str, Any]) -> str:
    """Return the verdict, and the units with the clearest labels, or else tokens."""
    lines = [units_verdict(found)]
    if found["labelled"] is not None:
        best = sorted(found["units"], key=lambda u: -(u["overlap"] or 0.0))[:MOST]
        lines += [
            f"  {u['unit']:>6}  {u['concept']}  overlap {number(u['overlap'])}, by chance "
            f"{number(u['chance'])}"
            for u in best
            if u["labelled"]
        ]
    elif found["units"] and "writes" in found["units"][0]:
        best = sorted(found["units"], key=lambda u: -(u["z"] or 0.0))[:MOST]
        lines += [
            f"  {u['unit']:>6}  writes {' '.join(repr(t) for t, _ in u['writes'][:5])}"
            for u in best
        ]
    return "\n".join(lines)
