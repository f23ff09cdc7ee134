"""Hooks of one module and port: they count calls and hand tensors to the ``Taken``."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.site import ATTENTION_PORTS
from sonde.tap.hooks.outputs import find, find_input, replaced, with_input
from sonde.tap.rows.kind import Kind
from sonde.tap.streams.taken import Taken, TakenTensor


class SiteHooks:
    """Hooks of a module at a port.

    Parameters
    ----------
    path, module, port : str, nn.Module, str
    kinds : sequence of Kind
        What is read there.
    stop_at : int
        The call after which nothing is left to read; -1 where another slot is the last.
    differentiates : bool
        Whether gradients are read too.
    """

    def __init__(
        self,
        path: str,
        module: nn.Module,
        port: str,
        kinds: Sequence[Kind],
        stop_at: int,
        differentiates: bool,
    ) -> None:
        self.path, self.module, self.port, self.kinds = path, module, port, tuple(kinds)
        self.stop_at, self.differentiates = stop_at, differentiates
        self.is_inside = port in ATTENTION_PORTS
        self._leaves: dict[int, tuple[TakenTensor, ...]] = {}
        self._taken: Taken | None = None

    def begin(self, taken: Taken) -> None:
        """Count calls anew, and hand tensors to ``taken`` from here on."""
        self._taken, self._calls = taken, 0

    def end(self) -> None:
        """Let go of what was taken; later calls of the module are not read."""
        self._taken = None

    def _called(self) -> tuple[TakenTensor, ...]:
        """Return the tensors that are read from this call."""
        if self._calls not in self._leaves:
            by_key: dict[str | None, list[Kind]] = {}
            for kind in self.kinds:
                if not isinstance(kind.site.call, int) or kind.site.call == self._calls:
                    by_key.setdefault(kind.site.key, []).append(kind)
            self._leaves[self._calls] = tuple(TakenTensor(*item) for item in by_key.items())
        return self._leaves[self._calls]

    def after(self, output: Any) -> Any:
        """Take from an output; return one with gradient-requiring tensors if those are needed."""
        taken = self._taken
        if taken is None:
            return None
        found: list[tuple[TakenTensor, Tensor]] = []
        for leaf in self._called():
            x = find(output, leaf.key)
            if x is None:
                site = str(leaf.kinds[0].site)
                raise SiteError(f"Site: {site!r} returned no such tensor this time.")
            taken.take(leaf, x, self._calls)
            found.append((leaf, x))
        changed = self._watched(taken, output, found) if self.differentiates else output
        self._count(taken)
        return None if changed is output else changed

    def _watched(
        self, taken: Taken, output: Any, found: Sequence[tuple[TakenTensor, Tensor]]
    ) -> Any:
        by_tensor: dict[int, tuple[Tensor, list[Kind]]] = {}
        for leaf, x in found:
            by_tensor.setdefault(id(x), (x, []))[1].extend(leaf.kinds)
        for x, kinds in by_tensor.values():
            watched = taken.watch(kinds, x, self._calls)
            output = replaced(output, x, watched) if watched is not x else output
        return output

    def before(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take from the inputs; return some in their place if gradients are needed.

        Other modules that read the same tensor take no part in the gradient.
        """
        taken = self._taken
        if taken is None:
            return None
        mine = self._called()
        for leaf in mine:
            x = find_input(self.module, args, kwargs, leaf.key)[1]
            taken.take(leaf, x, self._calls)
        for leaf in mine if self.differentiates else ():
            x = find_input(self.module, args, kwargs, leaf.key)[1]
            own = x.clone() if x.requires_grad else x
            watched = taken.watch(leaf.kinds, own, self._calls)
            args, kwargs = with_input(args, kwargs, x, watched)
        self._count(taken)
        return (args, kwargs) if self.differentiates and mine else None

    def _count(self, taken: Taken) -> None:
        call, self._calls = self._calls, self._calls + 1
        if call == self.stop_at and taken.stop is not None:
            taken.stop()
