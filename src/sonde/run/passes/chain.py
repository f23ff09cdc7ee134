"""Learners: passes over the units in plan order, checkpointed after every commit range."""

from collections.abc import Callable, Mapping
from pathlib import Path

from sonde.core.errors import StateError
from sonde.core.plan import Plan
from sonde.core.state import require_finite
from sonde.core.stream import Stream
from sonde.engine.passes import close_pass, observe_unit, still_learning
from sonde.engine.requests import Request, States
from sonde.files.state_file import read_state, state_type, write_state
from sonde.run.passes.ranges import unit_batches

CHECKPOINT = "chain.sonde"


def walk_chain(
    directory: Path,
    stream: Stream,
    wanted: Mapping[str, Request],
    plan: Plan,
    durable: bool,
    tick: Callable[[int], None] = lambda _: None,
) -> States:
    """Return learners' states after all passes, continued from a checkpoint of the same plan.

    ``tick`` is called with the number of examples done since its last call.
    """
    path = directory / CHECKPOINT
    n_done, first, states = _resume(path, wanted, plan)
    while active := still_learning(wanted, states, n_done):
        for start, stop in plan.commits():
            if stop <= first:
                continue
            for unit in range(start, stop):
                with unit_batches(stream, plan, unit, tick) as batches:
                    states.update(observe_unit(batches, active, plan.split, states=states))
            if stop < plan.n_units:
                _write(path, plan, n_done, stop, states, durable)
        states.update(close_pass(active, states))
        n_done, first = n_done + 1, 0
        _write(path, plan, n_done, 0, states, durable)
    return states


def _write(path: Path, plan: Plan, n_done: int, units: int, states: States, durable: bool) -> None:
    require_finite(states)
    header = {"plan": plan.id, "passes": n_done, "units": units}
    write_state(path, header, states, durable=durable)


def _resume(path: Path, wanted: Mapping[str, Request], plan: Plan) -> tuple[int, int, States]:
    """Return the number of finished passes, of units done in the next pass, and the states."""
    anew: tuple[int, int, States] = 0, 0, dict.fromkeys(wanted)
    if not path.exists():
        return anew
    types = {i: state_type(r.statistic) for i, r in wanted.items()}
    try:
        header, states = read_state(path, types)
    except StateError:
        return anew
    if header.get("plan") != plan.id or "passes" not in header:
        return anew
    return int(header["passes"]), int(header["units"]), states
