"""Runs in the environments of other libraries: which runner needs which environment."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.against import seconds_note
from benchmarks.child import ChildError, run_child
from benchmarks.environments import PeerError, python_of
from benchmarks.rows import Row, not_measured
from benchmarks.size import Size

Ask = Callable[..., Any]
"""``ask(function, **options)``: what a runner's function gives in its environment."""
PEER_OF = {
    "attribute_runner": "captum",
    "cache_runner": "kvpress",
    "data_runner": "cleanlab",
    "dictionary_runner": "sae-lens",
    "drift_runner": "evidently",
    "erase_runner": "concept-erasure",
    "label_runner": "cleanlab",
    "losses_runner": "losses",
    "merge_runner": "mergekit",
    "ood_runner": "pytorch-ood",
    "slice_runner": "sliceline",
}
"""Environment of each runner; the others are given one when they are run, or have none."""
UNMEASURED = (PeerError, ChildError)
"""What a run raises if the environment is not there, or the run fails."""


def in_peer(runner: str, offline: bool, peer: str = "", **always: Any) -> Ask:
    """Return a function that runs a function of a runner in its environment.

    Parameters
    ----------
    runner : str
        Name of the module in this folder.
    offline : bool
        Whether an environment that is not there may not be made.
    peer : str, optional
        Environment; by default that of ``PEER_OF``, or that of this process.
    **always
        Options of every run.

    Raises
    ------
    PeerError
        If the environment is not there and may not, or could not, be made.
    """
    peer = peer or PEER_OF.get(runner, "")
    python = python_of(peer, offline) if peer else sys.executable

    def run(function: str, **options: Any) -> Any:
        return run_child(f"benchmarks.{runner}:{function}", python, **always, **options)

    return run


def time_and_memory_rows(
    runner: str,
    group: str,
    what: str,
    size: Size,
    shape: Mapping[str, Any],
    budgets: tuple[float, float],
    notes: Callable[[dict[str, Any]], tuple[str, str]],
) -> list[Row]:
    """Return our time and memory over a peer's, by ``times`` and ``memory`` of a runner.

    Parameters
    ----------
    runner : str
        Name of the module in this folder.
    group : str
        Name of the benchmark.
    what : str
        What is measured, and against what.
    size : Size
        Rounds, and whether an environment may be made.
    shape : mapping of str to object
        Options of both functions.
    budgets : tuple of two float
        Largest ratio of times and of memory.
    notes : callable
        What is written behind the seconds and behind the MiB, from the result of ``times``.
    """
    try:
        ask = in_peer(runner, size.offline, **shape)
        taken = ask("times", rounds=size.rounds)
        ours, theirs = (ask("memory", steady=True, peer=peer) for peer in (False, True))
    except UNMEASURED as error:
        return [not_measured(group, what, str(error))]
    of_time, of_memory = notes(taken)
    note = f"{seconds_note(taken)}{of_time}; {taken['version']}"
    adds = f"adds {ours:.0f} MiB, the peer {theirs:.0f}{of_memory}"
    time = (taken["median"], "x", budgets[0], taken["spread"], taken["rounds"], note)
    ratio = ours / max(theirs, 1.0)
    return [
        Row(group, f"{what}, time", *time),
        Row(group, f"{what}, memory", ratio, budget=budgets[1], note=adds),
    ]


def audited(
    runner: str, size: Size, seeds: int, rounds: int, **always: Any
) -> tuple[Any, dict[str, float], dict[str, float]]:
    """Return what a runner found, and the seconds and the MiB of each of its arms.

    Raises
    ------
    PeerError, ChildError
        If the environment is not there, or a run fails.
    """
    ask = in_peer(runner, size.offline, **always)
    found, taken = ask("compared", seeds=seeds), ask("seconds", rounds=rounds)
    return found, taken, {arm: ask("memory", arm=arm) for arm in taken}
