"""Learners: a chain over units in plan order, checkpointed after every commit range."""

from collections.abc import Mapping
from pathlib import Path

from sonde.core.errors import StateError
from sonde.core.passes import observe_unit
from sonde.core.plan import Plan
from sonde.core.requests import Request, States
from sonde.core.statefile import read_state, state_type, write_state
from sonde.core.stream import Stream

CHECKPOINT = "chain.sonde"


def walk_chain(
    directory: Path, stream: Stream, wanted: Mapping[str, Request], plan: Plan, durable: bool
) -> States:
    """Return the states of learners after all units, from a checkpoint of the same plan on."""
    path = directory / CHECKPOINT
    first, states = _resume(path, wanted, plan)
    for start, stop in plan.commits():
        if stop <= first:
            continue
        for unit in range(start, stop):
            batches = stream.batches(plan.bounds[unit], plan.bounds[unit + 1])
            states = observe_unit(batches, wanted, plan.split, states=states)
        write_state(path, {"plan": plan.id, "units": stop}, states, durable=durable)
    return states


def _resume(path: Path, wanted: Mapping[str, Request], plan: Plan) -> tuple[int, States]:
    if not path.exists():
        return 0, dict.fromkeys(wanted)
    types = {i: state_type(r.statistic) for i, r in wanted.items()}
    try:
        header, states = read_state(path, types)
    except StateError:
        return 0, dict.fromkeys(wanted)
    if header.get("plan") != plan.id:
        return 0, dict.fromkeys(wanted)
    return int(header["units"]), states
