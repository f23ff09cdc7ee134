"""Whether a pipeline lets the data of one user change the answers to another user.

For pipelines of any kind: an index, a model that was tuned, a cache, a router. Answers are compared
to the bit, so a pipeline has to be deterministic. No change among a few queries is no proof.
"""

import struct
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sonde.core.errors import InputError, StateError

User = TypeVar("User", bound=Hashable)
Ask = Callable[[Any, Any], Any]
Pipeline = Callable[[Mapping[Any, Any]], Ask]


@dataclass(frozen=True)
class Interference:
    """How often the answers to each reader change with the data of each owner.

    Parameters
    ----------
    changed : dict of (reader, owner) to float
        Fraction of the reader's answers that change, to the bit, if the owner's data are replaced.
    cleared : dict of reader to frozenset
        Owners whose data a reader may read.
    """

    changed: dict[tuple[Any, Any], float]
    cleared: dict[Any, frozenset[Any]]

    @property
    def leaks(self) -> dict[tuple[Any, Any], float]:
        """The fractions of pairs where the reader is not cleared for the owner, if above 0."""
        return {
            (reader, owner): n
            for (reader, owner), n in self.changed.items()
            if n > 0 and owner not in self.cleared[reader]
        }

    @property
    def used(self) -> bool:
        """Whether data change any answer to a reader who is cleared for them.

        If not, no leak means nothing: the pipeline does not read what was replaced.
        """
        return any(n > 0 and owner in self.cleared[r] for (r, owner), n in self.changed.items())


def interference(
    pipeline: Pipeline,
    stored: Mapping[User, Any],
    replaced: Mapping[User, Any],
    asked: Mapping[User, Sequence[Any]],
    cleared: Mapping[User, Collection[User]] | None = None,
) -> Interference:
    """Replace the data of one user at a time and compare the answers to all others, bit by bit.

    Strict user-level non-interference: what a user is answered depends on the data that this user
    may read, and on no other data.

    Parameters
    ----------
    pipeline : callable
        Takes the data of all users, and returns a function of a user and a query that answers. An
        answer is a tensor, an array, text, bytes, a number, None, or a container of these.
    stored : mapping of user to data
        Data of each user, in whatever form the pipeline takes them.
    replaced : mapping of user to data
        Other data of the users whose influence is tested, such as none at all.
    asked : mapping of user to sequence
        Queries of each reader.
    cleared : mapping of user to collection of users, optional
        Owners whose data a reader may read; by default each reader's own alone.

    Raises
    ------
    InputError
        If there is no query or no data to replace, or an answer is of another kind.
    StateError
        If two pipelines on the same data answer differently.

    Examples
    --------
    >>> def shared(data):
    ...     longest = max((t for own in data.values() for t in own), key=len)
    ...     return lambda user, query: longest if query == "longest" else data[user][0]
    >>> found = interference(
    ...     shared,
    ...     {"ann": ["a", "bb"], "bob": ["ccc"]},
    ...     {"bob": ["cccc"]},
    ...     {"ann": ["first", "longest"], "bob": ["first"]},
    ... )
    >>> found.leaks, found.used
    ({('ann', 'bob'): 0.5}, True)

    References
    ----------
    wutschitz2023rethinking
    """
    if not replaced or not any(asked.values()):
        raise InputError(
            f"interference: expected data to replace and queries, got data of {len(replaced)} "
            f"users and {sum(map(len, asked.values()))} queries."
        )
    first, again = (_answers(pipeline, stored, asked) for _ in range(2))
    for user in first:
        if first[user] != again[user]:
            raise StateError(
                f"interference: expected the same answers from the same data, got others for "
                f"{user!r}. Fix the seeds of the pipeline, and its number of threads."
            )
    changed = dict[tuple[Any, Any], float]()
    for owner, other in replaced.items():
        after = _answers(pipeline, {**stored, owner: other}, asked)
        for reader, own in first.items():
            n = sum(a != b for a, b in zip(own, after[reader], strict=True))
            changed[reader, owner] = n / len(own)
    may = {r: frozenset([r] if cleared is None else cleared.get(r, ())) for r in first}
    return Interference(changed, may)


def _answers(
    pipeline: Pipeline, data: Mapping[User, Any], asked: Mapping[User, Sequence[Any]]
) -> dict[User, list[bytes]]:
    answer = pipeline(dict(data))
    return {u: [_bits(answer(u, query)) for query in own] for u, own in asked.items() if own}


def _bits(answer: Any) -> bytes:
    """Return bytes that are equal for equal answers, with their kind and shape."""
    if isinstance(answer, Tensor):
        raw = answer.detach().cpu().contiguous()
        head = f"{raw.dtype} {tuple(raw.shape)} "
        return head.encode() + raw.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(answer, np.ndarray | np.generic) and answer.dtype.kind in "biufcSU":
        return f"numpy {answer.dtype} {answer.shape} ".encode() + answer.tobytes()
    if isinstance(answer, float):
        return b"float " + struct.pack("<d", answer)
    if answer is None or isinstance(answer, bool | int | str | bytes):
        return f"{type(answer).__name__} {answer!r}".encode()
    if isinstance(answer, Mapping):
        return _bits([*answer.items()])
    if isinstance(answer, list | tuple):
        parts = [_bits(part) for part in answer]
        return b"".join(f"{len(part)}:".encode() + part for part in parts)
    raise InputError(
        "interference: expected an answer of tensors, arrays, texts, numbers or containers of "
        f"these, got a {type(answer).__name__}. Return what a user sees of it."
    )
