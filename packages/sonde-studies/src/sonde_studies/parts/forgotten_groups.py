"""Audits of unlearning by the losses of groups, such as persons or documents."""

import math
from collections.abc import Mapping

from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde.core import ChartAxis, group_means, marks
from sonde.data import ItemInputs
from sonde.edit import Forgotten
from sonde.report import Answer
from sonde_studies.parts.figures import names
from sonde_studies.parts.forgotten_rows import QUESTION

ALPHA = 0.01
"""Two-sided level of the test over groups."""


def are_other_groups(inputs: Mapping[str, ItemInputs]) -> bool:
    """Return whether forget and held examples have groups, and a forgotten one has no held row."""
    forget, held = inputs["forget"], inputs["held"]
    is_grouped = forget.grouped and held.grouped
    return is_grouped and not {*forget.group_keys} <= {*held.group_keys}


def gap_of_groups(forget: Tensor, held: Tensor) -> tuple[float, float, float]:
    """Return how much lower losses of forgotten groups are, its error, and Student's quantile.

    Groups are the units and have one variance, as they have if nothing is remembered: a single
    forgotten group is compared with the spread of the held ones. With fewer than three groups no
    error is known, and it is infinite.
    """
    sides, freedom = (forget, held), len(forget) + len(held) - 2
    gap = float(held.mean() - forget.mean())
    if freedom < 1:
        return gap, math.inf, 1.0
    squares = sum(float((x - x.mean()).square().sum()) for x in sides)
    error = math.sqrt(squares / freedom * sum(1 / len(x) for x in sides))
    return gap, error, float(stdtrit(freedom, 1 - ALPHA / 2))


def audit_by_groups(said: Forgotten) -> Answer:
    """Return whether the losses of forgotten groups still lie below those of held groups.

    With a gold model each loss counts less the gold model's.
    """
    gold = said.rows.get("retrained")
    found = dict[str, tuple[float, float, float]]()
    for model in ("before", "after"):
        means = dict[str, Tensor]()
        for part in ("forget", "held"):
            own = said.rows[model][part]
            loss = own.less(gold[part]) if gold else own.loss
            means[part] = group_means(loss, own.group)
        found[model] = gap_of_groups(means["forget"], means["held"])
    ends = {k: (gap - t * error, gap + t * error) for k, (gap, error, t) in found.items()}
    n_forget, n_held = (len(said.rows["after"][p].group.unique()) for p in ("forget", "held"))
    verdict = "cannot tell"
    if ends["after"][0] > 0:
        verdict = "not forgotten"
    elif ends["after"][1] < 0:
        verdict = "stands out by high losses"
    elif ends["before"][0] > 0:
        verdict = "gone by its losses"
    less = " less the gold model's" if gold else ""
    told = {k: f"{found[k][0]:.3g} ({_interval(*ends[k])})" for k in found}
    rows = [
        {"model": k, "gap": g, **dict(zip(("low", "high"), map(_known, ends[k]), strict=True))}
        for k, (g, _, _) in found.items()
    ]
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="clear" if verdict == "gone by its losses"
        else "warning" if verdict == "cannot tell" else "error",
        sentence=f"The mean loss{less} of held groups minus that of forgotten groups is "
        f"{told['after']} nats after, {told['before']} before (99 % intervals by Student's t, "
        f"groups as units: {n_forget} forgotten, {n_held} held; 0 is chance).",
        value=found["after"][0],
        se=_known(found["after"][1]),
        null=0.0,
        n=n_forget + n_held,
        direction="higher",
        rows=tuple(rows),
        drawn=marks("Loss of held groups minus that of forgotten groups", rows,
                    ChartAxis("gap", title="nats", zero=True), names("model"), low="low",
                    high="high", size=110, filled=True),
        facts={"control": "a model that never saw them" if gold else "none"},
        advice=() if verdict != "cannot tell" else (
            f"Groups are the units, since one group is harder than another for every model. Pass "
            f"held rows of the forgotten groups themselves, or of more other groups (got {n_held}) "
            "that were drawn as the forgotten ones.",
        ),
    )  # fmt: skip


def _known(value: float) -> float | None:
    """Return a number, None for an infinite one: no error is known."""
    return value if math.isfinite(value) else None


def _interval(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}" if math.isfinite(low) else "no interval from so few groups"
