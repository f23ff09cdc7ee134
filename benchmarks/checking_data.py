"""Planted faults of data: what a scan finds, against cleanlab's Datalab, sliceline, evidently."""

from benchmarks.peers import PEER_OF, UNMEASURED, audited, in_peer
from benchmarks.rows import Row, not_measured
from benchmarks.size import Size

PEER = PEER_OF["data_runner"]
WHAT = "faults of data"
OF_AUDIT = "{:.2f} s for a whole scan, {:.2f} s from given states"
FAULTS = (
    "wrong labels",
    "one class mislabelled",
    "outliers",
    "near duplicates",
    "weak group",
    "rows in an order",
)


def audit_rows(size: Size) -> list[Row]:
    """Measure what an audit finds, against each peer."""
    return [*data_rows(size), *slice_rows(size), *drift_rows(size)]


def data_rows(size: Size) -> list[Row]:
    """Missed and falsely named rows of each fault, time and memory."""
    try:
        found, taken, room = audited("data_runner", size, size.pick(3, 1), size.pick(3, 1))
    except UNMEASURED as error:
        return [not_measured("data", f"{WHAT} against {PEER}", str(error))]
    name = f"{found['n']} digits, against {found['version']}"
    rows = [row for fault in FAULTS for row in _of_fault(name, fault, found[fault])]
    return [
        *rows,
        _cost(f"{name}: time of one audit", taken, PEER, size.pick(3, 1), OF_AUDIT),
        _cost(f"{name}: memory of one audit", room, PEER, 1, "{:.0f} MiB against {:.0f} MiB"),
    ]


def label_rows(size: Size) -> list[Row]:
    """Exchanged labels that are missed by rank: the model, a probe, both, the peer."""
    try:
        found = in_peer("label_runner", size.offline)("ranked", seeds=size.pick(10, 1))
    except UNMEASURED as error:
        return [not_measured("labels", f"ranks of exchanged labels against {PEER}", str(error))]
    version, rows = found.pop("version"), []
    for kind, said in found.items():
        arms = said["arms"]
        name = f"{said['n']} rows of {kind}, against {version}"
        note = "found: " + ", ".join(f"{arm} {share:.1%}" for arm, share in arms.items())
        note += f"; the model is {said['accuracy']:.1%} accurate"
        what = f"{name}: exchanged labels (5 %) not among as many first rows"
        rows.append(Row("labels", what, 1 - arms["both"], "", 1 - arms[PEER], note=note))
    return rows


def slice_rows(size: Size) -> list[Row]:
    """Missed rows of a weak group by known columns, false alarms, time and memory."""
    peer, n = PEER_OF["slice_runner"], size.pick(2000, 400)
    try:
        found, taken, room = audited("slice_runner", size, size.pick(20, 1), size.pick(9, 1), n=n)
    except UNMEASURED as error:
        return [not_measured("data", f"weak group against {peer}", str(error))]
    name = f"{n} rows, against {found['version']}"
    mine, other = found["sonde"], found[peer]
    note = "; ".join(
        f"{arm}: precision {found[arm]['precision']:.2f}, recall {found[arm]['recall']:.2f}"
        for arm in taken
    )
    what = f"{name}: healthy data that name a group, share"
    in_ms = {arm: 1000 * seconds for arm, seconds in taken.items()}
    return [
        Row("data", f"{name}: weak group, 1 - F1", 1 - _f1(mine), "", 1 - _f1(other), note=note),
        Row("data", what, mine["false"], "", other["false"]),
        _cost(
            f"{name}: time of one search",
            in_ms,
            peer,
            size.pick(9, 1),
            "{:.1f} ms against {:.1f} ms",
        ),
        _cost(f"{name}: memory of one search", room, peer, 1, "{:.1f} MiB against {:.1f} MiB"),
    ]


def drift_rows(size: Size) -> list[Row]:
    """Missed columns of each fault, columns named beside it, words for it, time and memory."""
    peer = PEER_OF["drift_runner"]
    try:
        found, taken, room = audited("drift_runner", size, size.pick(4, 1), size.pick(5, 1))
    except UNMEASURED as error:
        return [not_measured("data", f"columns that moved against {peer}", str(error))]
    name = f"{found.pop('n')} rows of a table, against {found.pop('version')}"
    rows: list[Row] = []
    for fault, arms in found.items():
        mine, other = arms["sonde"], arms[peer]
        beside = f"{name}: {fault or 'healthy data'}, columns named{' beside' if fault else ''}"
        if fault:
            note = f"a scan's words say what happened in {mine['explained']:.0%}, the peer has none"
            missed = f"{name}: {fault}, share missed"
            rows.append(Row("data", missed, mine["missed"], "", other["missed"], note=note))
        rows.append(Row("data", beside, mine["beside"], "", other["beside"]))
    for what, each, unit in (("time", taken, "s"), ("memory", room, "MiB")):
        note = f"{{:.2f}} {unit} for a whole scan, {{:.2f}} {unit} for columns"
        rows.append(_cost(f"{name}: {what} of one comparison", each, peer, 1, note))
    return rows


def _cost(what: str, each: dict[str, float], peer: str, rounds: int, note: str) -> Row:
    """Return what ours takes over what the peer takes; the note holds both."""
    ours, theirs = each["sonde"], each[peer]
    ratio = ours / max(theirs, 1e-9)
    return Row("data", what, ratio, budget=1.0, rounds=rounds, note=note.format(ours, theirs))


def _of_fault(name: str, fault: str, found: dict[str, dict[str, float]]) -> list[Row]:
    """Return one less the F1 of precision and recall, and what is named in rows without a fault."""
    mine, other = found["sonde"], found[PEER]
    note = "; ".join(
        f"{arm}: precision {said['precision']:.2f}, recall {said['recall']:.2f}"
        for arm, said in found.items()
    )
    missed = Row("data", f"{name}: {fault}, 1 - F1", 1 - _f1(mine), "", 1 - _f1(other), note=note)
    alarms = Row(
        "data", f"{name}: {fault}, rows named in healthy data", mine["false"], "", other["false"]
    )
    return [missed, alarms]


def _f1(said: dict[str, float]) -> float:
    both = said["precision"] + said["recall"]
    return 2 * said["precision"] * said["recall"] / both if both > 0 else 0.0
