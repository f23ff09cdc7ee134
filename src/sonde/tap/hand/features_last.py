"""A raw output in the layout for edits: examples first, features last, not nested."""

from dataclasses import dataclass

from torch import Tensor, nn

from sonde.tap.hooks.call import CallArguments
from sonde.tap.model.axes import Axes
from sonde.tap.model.shown_axes import axes_here
from sonde.tap.model.time_first import rows_first
from sonde.tap.rows.nested import nested_like, padded

STATES = Axes(("row", "pos", "dim"))


@dataclass(frozen=True, eq=False)
class FeaturesLast:
    """A raw output with its features last.

    Attributes
    ----------
    x : Tensor
        The output itself if it has this form already.
    has_tokens : bool
        Whether its axes are (example, token, feature).
    is_flat : bool
        Whether the output had the tokens of all examples on one axis.
    is_time_first : bool
        Whether the output was (time, example, feature).
    """

    leaf: Tensor
    x: Tensor
    has_tokens: bool
    dim: int = -1
    is_flat: bool = False
    is_time_first: bool = False

    @staticmethod
    def of(
        leaf: Tensor,
        module: nn.Module,
        root: nn.Module,
        call: CallArguments | None,
        axis: int | None = None,
        port: str = "out",
        key: str | None = None,
    ) -> "FeaturesLast":
        """Return a module's output; a nested output is padded by the mask of the call.

        If the tokens of all examples share one axis, as experts see them, they get two axes again.
        """
        if leaf.is_nested:
            mask = None if call is None else call.mask
            return FeaturesLast(leaf, padded(leaf, mask), has_tokens=True)
        if leaf.ndim < 2:
            return FeaturesLast(leaf, leaf, has_tokens=False)
        x = rows_first(leaf, module, root, {} if call is None else call.named)
        if x is not leaf:
            return FeaturesLast(leaf, x, has_tokens=True, is_time_first=True)
        fed = None if call is None else call.fed
        if fed is not None and leaf.ndim == 2 and len(leaf) == fed.numel() > fed.shape[0]:
            return FeaturesLast(leaf, leaf.reshape(*fed.shape, -1), has_tokens=True, is_flat=True)
        axes = axes_in(call, leaf, module, root, axis, port, key)
        dim = axes.words.index("dim")
        x = leaf if dim == leaf.ndim - 1 else leaf.movedim(dim, -1)
        return FeaturesLast(leaf, x, axes.kind == "pos", dim)

    def back(self, new: Tensor) -> Tensor:
        """Return a tensor shaped like ``x`` in the output's original layout."""
        if self.leaf.is_nested:
            return nested_like(self.leaf, new)
        if self.is_time_first:
            return new.transpose(0, 1)
        if self.is_flat:
            return new.reshape(self.leaf.shape)
        return new if self.dim in (-1, new.ndim - 1) else new.movedim(-1, self.dim)


def axes_in(
    call: CallArguments | None,
    x: Tensor,
    module: nn.Module,
    root: nn.Module,
    axis: int | None = None,
    port: str = "out",
    key: str | None = None,
) -> Axes:
    """Return an output's axes; three axes if there is one state per token of the call."""
    fed = None if call is None else call.fed
    if x.ndim == 3 and axis is None and fed is not None and x.shape[:2] == fed.shape:
        return STATES
    given = None if call is None else (call.args, call.kwargs)
    return axes_here(x, module, root, given, axis, port, key)
