"""A network that shares its first layers among tasks, and has late layers for each of them.

For several tasks on the same inputs; ``gradient_conflict`` says where their gradients disagree.
"""

import copy
from collections.abc import Sequence
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.layers.layer import Layer


@final
class Fork(Layer):
    """Run shared layers, then one branch of layers for each task.

    ``y_t = branch_t(shared(x))``. All tasks train the shared layers, each task its own branch
    alone. ``cut`` builds the fork from the blocks of a network.

    Cost         the shared layers once, and every branch; ``answer`` runs one branch.
    Assumes      tasks whose inputs have one form; mix the rows of the tasks in a batch, or train
                 them in turn with ``answer``.
    Differs      from the paper: no training stages; any modules in place of language models.

    Parameters
    ----------
    shared : nn.Module
        Layers of all tasks; ``nn.Identity()`` shares none.
    branches : sequence of nn.Module
        Layers of each task, with its head; no module twice.

    Examples
    --------
    >>> import torch
    >>> fork = Fork(nn.Linear(4, 3), [nn.Linear(3, 2), nn.Linear(3, 5)])
    >>> [tuple(y.shape) for y in fork(torch.ones(6, 4))]
    [(6, 2), (6, 5)]
    >>> fork.answer(torch.ones(6, 4), 1).shape
    torch.Size([6, 5])

    References
    ----------
    li2025unifork
    """

    paper: ClassVar[str] = "li2025unifork"
    layout: ClassVar[tuple[str, ...]] = ("*axes",)
    insertable = False

    def __init__(self, shared: nn.Module, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        own = {id(branch) for branch in branches}
        if not branches or len(own) < len(branches):
            raise InputError(
                f"Fork: expected a branch for each task, each a module of its own, got "
                f"{len(branches)} branches of {len(own)} modules. Copy them, or use Fork.cut."
            )
        self.shared, self.branches = shared, nn.ModuleList(branches)

    @classmethod
    def cut(cls, blocks: Sequence[nn.Module], n_shared: int, heads: Sequence[nn.Module]) -> "Fork":
        """Return a fork of a network: its first blocks, and for each head a copy of the others.

        Parameters
        ----------
        blocks : sequence of nn.Module
            Blocks of the network, in the order in which they run. The shared ones are not copied.
        n_shared : int
            Number of shared blocks, from 0 to all.
        heads : sequence of nn.Module
            Last layers of each task.

        Raises
        ------
        InputError
            If there are fewer blocks than are shared.
        """
        if not 0 <= n_shared <= len(blocks):
            raise InputError(
                f"Fork.cut: expected n_shared from 0 to the {len(blocks)} blocks, got {n_shared}."
            )
        late = [[copy.deepcopy(block) for block in blocks[n_shared:]] for _ in heads]
        branches = [nn.Sequential(*own, head) for own, head in zip(late, heads, strict=True)]
        return cls(nn.Sequential(*blocks[:n_shared]), branches)

    def forward(self, x: Float[Tensor, "*axes"]) -> tuple[Tensor, ...]:
        """Return the output of every branch, in the order of the tasks."""
        states = self.shared(x)
        return tuple(branch(states) for branch in self.branches)

    def answer(self, x: Float[Tensor, "*axes"], task: int) -> Tensor:
        """Return the output of one branch; the others do not run.

        Parameters
        ----------
        x : Float[Tensor, "*axes"]
        task : int
            Number of the branch.
        """
        return self.branches[task](self.shared(x))
