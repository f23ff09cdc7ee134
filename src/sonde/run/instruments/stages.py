"""The passes of an instrument: the next pass follows from the states of the last one."""

from collections.abc import Iterable

import torch

from sonde.core.instrument import Instrument
from sonde.core.plan import Split
from sonde.engine.passes import states_of
from sonde.engine.requests import States, Task


def has_stages(task: Task) -> bool:
    """Return whether a task's instrument may need another pass."""
    return type(task.instrument).then is not Instrument.then


def next_task(task: Task, states: States, split: Split | None) -> Task | None:
    """Return the task of the next pass over the same rows, or None if no pass is left."""
    if not has_stages(task):
        return None
    with torch.no_grad():
        result = task.instrument.result(**states_of(task, states, split))
    after = task.instrument.then(result)
    return None if after is None else Task(after, task.keys)


def next_tasks(tasks: Iterable[Task], states: States, split: Split | None) -> list[Task]:
    """Return the tasks of the next pass."""
    following = [next_task(task, states, split) for task in tasks]
    return [task for task in following if task is not None]


def last_task(task: Task, states: States, split: Split | None) -> Task:
    """Return the task of the last pass, which computes the result."""
    while (after := next_task(task, states, split)) is not None:
        task = after
    return task
