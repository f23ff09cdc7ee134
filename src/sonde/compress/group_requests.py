"""Plan which experts to load, if every request's expert is known in advance."""

from collections.abc import Sequence

from sonde.core.errors import InputError


def group_requests(experts: Sequence[int], size: int) -> list[list[int]]:
    """Return batches of requests, one expert each, in the order of the experts' first request.

    Parameters
    ----------
    experts : sequence of int
        Expert of each request.
    size : int
        Most requests of a batch.

    Examples
    --------
    >>> group_requests([2, 0, 2, 2, 0], 2)
    [[0, 2], [3], [1, 4]]
    """
    if size < 1:
        raise InputError(f"group_requests: expected a size from 1, got {size}.")
    by_expert: dict[int, list[int]] = {}
    for i, expert in enumerate(experts):
        by_expert.setdefault(expert, []).append(i)
    return [rows[i : i + size] for rows in by_expert.values() for i in range(0, len(rows), size)]


def count_loads(experts: Sequence[int], room: int) -> int:
    """Return the number of expert loads if memory holds ``room`` experts.

    If memory is full, the expert whose next use is latest goes; no plan needs fewer loads.

    Parameters
    ----------
    experts : sequence of int
        In the order of use.
    room : int
        Number of experts that memory holds.

    Examples
    --------
    >>> count_loads([0, 1, 2, 0, 1, 2], 2)
    4

    References
    ----------
    belady1966study
    """
    if room < 1:
        raise InputError(f"count_loads: expected room for an expert or more, got {room}.")
    after, later = list[int](), dict[int, int]()
    for i in reversed(range(len(experts))):
        after.append(later.get(experts[i], len(experts)))
        later[experts[i]] = i
    held, n_loads = dict[int, int](), 0
    for expert, next_use in zip(experts, reversed(after), strict=True):
        if expert not in held:
            n_loads += 1
            if len(held) == room:
                del held[max(held, key=held.__getitem__)]
        held[expert] = next_use
    return n_loads
