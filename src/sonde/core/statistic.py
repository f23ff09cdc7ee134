"""Statistics of rows, which can be merged, saved, sharded and resumed.

A ``Statistic`` is a frozen dataclass of parameters with two pure functions, ``observe`` and
``merge``. The parameter names of ``observe`` are its needs: the columns that the runner must bring.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, reduce
from typing import Any, ClassVar, Generic, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from sonde.core.columns import declared
from sonde.core.errors import StateError
from sonde.core.keywords import check_values
from sonde.core.state import State, size_bytes

Span = Literal["one", "pair", "all"]
Merging = Literal["exact", "bounded", "none"]

NARROW = 256
WIDTHS = (64, 128, 192)

StateT = TypeVar("StateT", bound=State)


@cache
def parameter_names(function: Any) -> tuple[str, ...]:
    """Return the names of a function's positional parameters without ``self``."""
    names = tuple(inspect.signature(function).parameters)
    return names[1:] if names[:1] == ("self",) else names


class Statistic(ABC, Generic[StateT]):
    """A mergeable summary of rows. Subclasses are final frozen dataclasses of parameters.

    Attributes
    ----------
    span : {"one", "pair"}
        Whether rows come from one site or, joined, from two.
    merging : {"exact", "bounded", "none"}
        ``exact``: any split of the rows gives the state of one pass, to rounding. ``bounded``: the
        state carries the number that bounds the difference. ``none``: trained by steps.
    whole_groups : bool
        Whether every group must arrive whole inside one ``observe`` call.
    whole_examples : bool
        Whether every example must arrive whole inside one call. A group may hold several examples.
    in_any_order : bool
        Whether merging states in any order and number gives the same bits, so that states may wait
        for each other.
    """

    span: ClassVar[Span] = "one"
    merging: ClassVar[Merging] = "exact"
    whole_groups: ClassVar[bool] = False
    whole_examples: ClassVar[bool] = False
    in_any_order: ClassVar[bool] = False

    def __new__(cls, *args: Any, **parameters: Any) -> Any:
        """Return an empty statistic; raise if a parameter does not take the given value."""
        check_values(cls, args, parameters)
        return object.__new__(cls)

    def needs(self) -> tuple[str, ...]:
        """Return the columns that ``observe`` takes, in order."""
        return parameter_names(type(self).observe)

    @abstractmethod
    def observe(self, *columns: Any, **_: Any) -> StateT:
        """Return the state of these rows. Called with positional arguments and at least one row."""

    @abstractmethod
    def merge(self, a: StateT, b: StateT) -> StateT:
        """Return the state of both sets of rows, without changing either state."""

    def update(self, state: StateT, *columns: Any, **_: Any) -> StateT:
        """Return ``state`` updated with these rows. Override it for speed."""
        return self.merge(state, self.observe(*columns))

    def merge_all(self, states: Sequence[StateT]) -> StateT:
        """Return the merge of at least one state. Override it for speed."""
        return reduce(self.merge, states)

    def absorbs(self, *states: StateT) -> bool:
        """Return whether the merged states have reached the largest size of a state.

        Asked only if ``in_any_order``. If True, the states are merged at once and the next rows
        update the merged state; else the states of several units are kept and merged later.
        """
        return False

    def influence(
        self, state: StateT, gradient: StateT, *columns: Any, **_: Any
    ) -> Float[Tensor, "row"] | None:
        """Return the first-order effect of a further row on a value with this gradient.

        ``None`` where the statistic has no such formula. The effect of a row is the derivative of
        ``value(merge(state, eps * observe(row)))`` in ``eps`` at 0.
        """
        return None

    def size_bytes(self, *dims: int) -> int:
        """Return the largest size of a state in bytes, for rows of these widths.

        By default this is measured on the state of eight made-up rows; for wide rows a parabola
        through three narrow widths is extrapolated. A statistic whose state grows with the rows up
        to a limit overrides it with that limit.
        """
        widest = max(dims, default=0)
        if widest <= NARROW:
            return self.made_up_bytes(8, *dims)
        one, two, three = (
            self.size_bytes(*(max(1, dim * width // widest) for dim in dims)) for width in WIDTHS
        )
        steps = (widest - WIDTHS[0]) / (WIDTHS[1] - WIDTHS[0])
        bend = (three - 2 * two + one) / 2
        return round(one + (two - one - bend) * steps + bend * steps**2)

    @property
    def holds_rows(self) -> bool:
        """True if a state stores rows up to a limit, which its ``size_bytes`` includes."""
        default: object = Statistic[Any].size_bytes
        return type(self).size_bytes is not default and self.merging != "none"

    def made_up_bytes(self, n: int, *dims: int) -> int:
        """Return the bytes of a state of ``n`` artificial rows of these widths."""
        return size_bytes(
            self.observe(*(declared(name).made_up(n, *dims) for name in self.needs()))
        )

    def bound(self, state: StateT) -> float:
        """Return a bound on the state's difference from a single pass over all rows."""
        raise NotImplementedError(f"{type(self).__name__}.bound: only for merging = 'bounded'.")


class Learner(Statistic[StateT]):
    """A statistic that is trained step by step in plan order, and therefore cannot merge.

    The runner walks over the rows ``n_passes`` times at most: a first walk may learn the scale of
    the rows and further ones train. The state keeps the purpose of the walk.
    """

    merging: ClassVar[Merging] = "none"

    def needs(self) -> tuple[str, ...]:
        """Return the columns that ``update`` takes after the state."""
        return parameter_names(type(self).update)[1:]

    @abstractmethod
    def start(self, dim: int) -> StateT:
        """Return the seeded initial state."""

    @abstractmethod
    def update(self, state: StateT, *columns: Any, **_: Any) -> StateT:
        """Return the state after training on these rows."""

    def n_passes(self) -> int:
        """Return the maximal number of passes over the rows."""
        return 1

    def close_pass(self, state: StateT) -> StateT:
        """Return the state after the last row of a pass."""
        return state

    def is_trained(self, state: StateT) -> bool:
        """Return whether training is finished; called after each pass."""
        return False

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of the initial state."""
        return size_bytes(self.start(dims[0]))

    def observe(self, *columns: Any, **_: Any) -> StateT:
        """Raise, because a learner has no state of a single batch."""
        raise StateError(
            f"{type(self).__name__}: a learner is updated in plan order, not observed."
        )

    def merge(self, a: StateT, b: StateT) -> StateT:
        """Raise, because two trained states cannot be merged."""
        raise StateError(
            f"{type(self).__name__}.merge: a trained state cannot be merged (merging = 'none'). "
            "Fit it in one run over all data."
        )
