"""Find in the autograd graph where parameters meet the rows of a batch.

A parameter is first reshaped, cast, or looked up by positions that all rows share; then some
operation combines it with values of the rows. The gradient of one row splits off at that meeting.
Nothing here knows a class of modules, so tied weights, weights that are used outside of their
module, and modules that run twice need no care.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge

FORM = frozenset(
    f"{name}Backward0"
    for name in [
        "Alias",
        "Clone",
        "Permute",
        "ReshapeAlias",
        "Select",
        "Slice",
        "Squeeze",
        "T",
        "ToCopy",
        "Transpose",
        "UnsafeView",
        "Unsqueeze",
        "View",
    ]
) | {"SqueezeBackward1"}
"""Operations on one tensor that give a parameter no axis of rows."""

LEAF = "torch::autograd::AccumulateGrad"
Step = tuple[Any, int]
"""A node of the graph, and the number of its input that is meant."""


@dataclass(frozen=True, eq=False)
class Use:
    """One operation that uses a parameter.

    Parameters
    ----------
    node, index
        The operation in which it meets the rows, and the number of its input there.
    chain : tuple of Step
        What happens to the parameter before, in order.
    shape : tuple of int
        Of the tensor that meets the rows.
    """

    node: Any
    index: int
    chain: tuple[Step, ...]
    shape: tuple[int, ...]


def shape_after(node: Any) -> tuple[int, ...]:
    """Return the shape of the first output of an operation."""
    return tuple(node._input_metadata[0].shape)


def edge(node: Any) -> GradientEdge:
    """Return the graph edge at which the gradient of an operation's first output is taken."""
    return GradientEdge(node, 0)


class Graph:
    """The operations behind a tensor, and the users of each operation's output."""

    def __init__(self, root: Tensor) -> None:
        self._users: dict[Any, list[Step]] = defaultdict(list)
        self._leaves: dict[int, Any] = {}
        waiting: list[Any] = [root.grad_fn]
        seen: set[Any] = {root.grad_fn}
        while waiting:
            node: Any = waiting.pop()
            for index, (below, number) in enumerate(node.next_functions):
                if below is None:
                    continue
                if number == 0:
                    self._users[below].append((node, index))
                if below in seen:
                    continue
                seen.add(below)
                waiting.append(below)
                if below.name() == LEAF:
                    self._leaves[id(below.variable)] = below

    def users(self, node: Any) -> list[Step]:
        """Return the operations that take the first output of a node."""
        return self._users.get(node, [])

    def entries(self, parameter: Tensor) -> Iterator[Use]:
        """Yield the operations that use a parameter, after those that only reshape or cast it."""
        leaf = self._leaves.get(id(parameter))
        if leaf is not None:
            yield from self._behind(leaf, (), tuple(parameter.shape))

    def beyond(self, use: Use) -> Iterator[Use]:
        """Yield the operations that consume the output of a use without a row axis."""
        chain = (*use.chain, (use.node, use.index))
        yield from self._behind(use.node, chain, shape_after(use.node))

    def _behind(self, node: Any, chain: Sequence[Step], shape: tuple[int, ...]) -> Iterator[Use]:
        for user, index in self.users(node):
            if user.name() in FORM:
                yield from self._behind(user, (*chain, (user, index)), shape_after(user))
            else:
                yield Use(user, index, tuple(chain), shape)
