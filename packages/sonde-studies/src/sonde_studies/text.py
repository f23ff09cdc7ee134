"""The table of a study as text."""

from textwrap import wrap

from sonde_studies.arms import GIVEN, SEPARATOR, unequal
from sonde_studies.nulls import FAULTS, faults_seen
from sonde_studies.places import PLACES
from sonde_studies.study import BETWEEN, NULL_LEVEL, Claim, Outcome, StudyTable

WIDTH = 100
LARGE = 20.0
FREE = 20.0
"""Seconds of a seed that a study need not state."""


def as_text(table: StudyTable) -> str:
    """Return the claims, the null arm, and the results of every arm as text."""
    study = table.study
    seeds = ", ".join(map(str, table.seeds))
    head = [
        f"{study.name}: {study.title}",
        *_field("paper", study.paper or "none: the study is ours"),
        *_field("data", study.data),
        *_field("place", f"{PLACES[study.place].what}; {PLACES[study.place].cost}"),
        *_field("cost", f"{'at most ' * (study.seconds <= FREE)}{study.seconds:g} s a seed"),
        *_field("fidelity", study.fidelity),
        *_field("seeds", f"{seeds}; {table.seconds:.0f} s{'; TINY: no evidence' * table.tiny}"),
    ]
    claims = [line for claim in study.claims for line in _claim(table, claim)]
    null = _claim(table, study.null, is_null=True)
    named = {claim.key for claim in (*study.claims, study.null)}
    arms = [key for key in table.figures if key not in named]
    plain = [_arm(table, key) for key in arms if BETWEEN not in key]
    if plain:
        plain = ["", f"  {'arm':<40}{'mean':>9}{'least':>9}{'largest':>9}", *plain]
    return "\n".join([*head, "", *claims, *null, *plain, *_grid(table)])


def _grid(table: StudyTable) -> list[str]:
    """Return results named ``row | column`` as a grid of means and standard deviations."""
    cells = {
        (row, column): Outcome(values)
        for key, values in table.figures.items()
        for row, between, column in [key.removeprefix(SEPARATOR).partition(BETWEEN)]
        if between
    }
    rows, columns = (list(dict.fromkeys(k[i] for k in cells)) for i in (0, 1))
    if not rows:
        return []
    lines = [["", *columns], *([r, *(_cell(cells.get((r, c))) for c in columns)] for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "",
        "  mean +- standard deviation over seeds",
        *(
            "  "
            + "  ".join(
                x.rjust(w) if i else x.ljust(w)
                for i, (x, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ),
    ]


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if abs(outcome.mean) >= LARGE:
        return f"{outcome.mean:,.0f}"
    return f"{outcome.mean:.3f} +- {outcome.deviation:.3f}"


def _field(name: str, text: str) -> list[str]:
    first, *rest = wrap(text, WIDTH - 12)
    return [f"  {name:<10}{first}", *(f"{'':12}{line}" for line in rest)]


def _claim(table: StudyTable, claim: Claim, is_null: bool = False) -> list[str]:
    outcome = table.outcome(claim)
    low, high = outcome.interval
    if is_null:
        said = table.null_verdict
        verdict = said if outcome.covers else said.upper()
    else:
        verdict = table.verdict(claim)
    lines = wrap(f"{'null: ' if is_null else ''}{claim.text}", WIDTH - 4)
    level = f" at {NULL_LEVEL:.0%}" if is_null else ""
    if claim.arms is not None:
        means = {key: sum(v) / len(v) for key, v in table.figures.items()}
        ratios = [f"{r:.2g} x {what}" for what, r in unequal(*claim.arms, means).items()]
        noted = [w for w in GIVEN if f"{SEPARATOR}{claim.arms[0]} | {w}" in means]
        equal = f"equal {', '.join(noted)}"
        lines += wrap(f"{' against '.join(claim.arms)}: {', '.join(ratios) or equal}", WIDTH - 4)
    if is_null:
        faults = [FAULTS[fault] for fault in faults_seen(table.study.name)]
        seen = "; ".join(faults) or "no fault of the study: both runs are equal by construction"
        lines += wrap(f"it could see: {seen}", WIDTH - 4)
    figure = (
        f"{claim.figure}: {outcome.mean:.3f} [{low:.3f}, {high:.3f}]{level}; "
        f"{'expected' if is_null else 'bar'} {claim.above:g}; "
        f"would have seen {outcome.detectable:.3f}; {verdict}"
    )
    return [
        f"  {lines[0]}",
        *(f"  {line}" for line in lines[1:]),
        *(f"      {x}" for x in wrap(figure, WIDTH - 6)),
    ]


def _arm(table: StudyTable, key: str) -> str:
    values = table.figures[key]
    mean = sum(values) / len(values)
    return f"  {key:<40}{mean:9.3f}{min(values):9.3f}{max(values):9.3f}"
