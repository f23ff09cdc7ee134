"""Give a condition to the layers inside a model, for the calls in a ``with`` block."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError, ShapeError
from sonde.core.inputs import Model
from sonde.layers.layer import Layer
from sonde.tap.hooks.held import Held


class ConditionedLayer(Layer):
    """A layer that reads a condition, from its call or from ``conditioned``.

    Attributes
    ----------
    condition : int
        Width of the condition; 0 for a layer that takes none.
    """

    condition: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.held: Held[Tensor] = Held("conditioned")

    @property
    def shared(self) -> Tensor | None:
        """Condition of the ``conditioned`` block of the running thread or task; None without one.

        Raises
        ------
        StateError
            If this thread opened no block, and several others did.
        """
        return self.held.get()

    @property
    def is_active(self) -> bool:
        """True if ``conditioned`` gave a condition."""
        return self.shared is not None

    def condition_for(self, x: Tensor, condition: Tensor | None, axes: int) -> Tensor | None:
        """Return the condition with as many axes as ``x``; None if there is no condition.

        Parameters
        ----------
        x : Tensor
        condition : Tensor or None
            (row, condition), or one vector for each position; by default the condition of
            ``conditioned``.
        axes : int
            Axes of ``x`` between its rows and its units.
        """
        c = self.shared if condition is None else condition
        if c is None:
            return None
        whole = c.ndim == axes + 2 and c.shape[:-1] == x.shape[: axes + 1]
        if (
            not self.condition
            or c.shape[-1] != self.condition
            or not (whole or (c.ndim == 2 and len(c) in (1, len(x))))
        ):
            raise ShapeError(
                f"{type(self).__name__}.forward: expected a condition (row "
                f"condition={self.condition}), or one vector for each position, for states "
                f"{tuple(x.shape)}, got {tuple(c.shape)}."
            )
        c = c.to(x.dtype)
        return c if whole else c.reshape(len(c), *[1] * axes, c.shape[-1])


@contextmanager
def conditioned(
    model: Model | nn.Module, condition: Float[Tensor, "row *axes condition"]
) -> Iterator[None]:
    """Give a condition to all layers of a model that read one, inside the block.

    Blocks of several threads or tasks do not see each other. A thread without a block, such as one
    that generates for another, has the condition of the only block that is open.

    Parameters
    ----------
    model : Model or nn.Module
        The model whose layers read the condition.
    condition : Float[Tensor, "row *axes condition"]
        Condition of each example; the states' axes between the first and the last may follow.

    Raises
    ------
    InputError
        If no layer of the model reads a condition.

    Examples
    --------
    >>> import torch, sonde
    >>> layer = sonde.layers.ConditionalNorm(4, condition=2, norm="none")
    >>> net = sonde.inserted(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), {"0": layer})
    >>> with sonde.layers.conditioned(net, torch.ones(5, 2)):
    ...     net(torch.ones(5, 3)).shape
    torch.Size([5, 1])
    """
    module = model.module if isinstance(model, Model) else model
    parts = [m for m in module.modules() if isinstance(m, ConditionedLayer) and m.condition]
    if not parts:
        raise InputError(
            "conditioned: expected a model with a layer that reads a condition, got a model "
            "without one. Insert a ConditionalNorm, a conditioned UnitGate or a "
            "DecoupledCrossAttention."
        )
    with ExitStack() as blocks:
        for part in parts:
            blocks.enter_context(part.held.held(condition))
        yield
