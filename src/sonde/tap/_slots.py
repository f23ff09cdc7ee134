"""The modules that an onlooker watches: each counts its calls and hands tensors on."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from sonde.core.errors import SiteError, near
from sonde.tap._choose import Kind
from sonde.tap.outputs import find, find_input


@runtime_checkable
class Taker(Protocol):
    """Takes the tensors of the modules that it watches."""

    kinds: tuple[Kind, ...]

    @property
    def is_open(self) -> bool:
        """Whether what modules do now counts."""
        ...

    def take(self, kind: Kind, leaf: Tensor, call: int) -> None:
        """Take what one call of a site brought."""
        ...

    def watched(self, kinds: Sequence[Kind], output: Any) -> Any:
        """Return an output, or one in its place."""
        ...

    def watched_input(
        self,
        kinds: Sequence[Kind],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return arguments in place of these, or None to leave them."""
        ...


class Slot:
    """One module and port: counts its calls and hands tensors to who takes them."""

    def __init__(self, taker: Taker, port: str, kinds: Sequence[Kind], module: nn.Module) -> None:
        self.taker, self.port, self.kinds, self.module = taker, port, tuple(kinds), module
        self.calls = 0

    def after(self, output: Any) -> Any:
        """Take from an output; return one in its place only where a gradient is wanted."""
        if not self.taker.is_open:
            return None
        mine = self._mine()
        for kind in mine:
            leaf = find(output, kind.site.key)
            if leaf is None:
                raise SiteError(f"Guard: {str(kind.site)!r} returned no such tensor this time.")
            self.taker.take(kind, leaf, self.calls)
        self.calls += 1
        changed = self.taker.watched(mine, output)
        return None if changed is output else changed

    def before(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take from the inputs; return some in their place only where a gradient is wanted."""
        if not self.taker.is_open:
            return None
        mine = self._mine()
        for kind in mine:
            leaf = find_input(self.module, args, kwargs, kind.site.key)[1]
            self.taker.take(kind, leaf, self.calls)
        self.calls += 1
        return self.taker.watched_input(mine, self.module, args, kwargs)

    def _mine(self) -> list[Kind]:
        return [
            k for k in self.kinds if not isinstance(k.site.call, int) or k.site.call == self.calls
        ]


def slots_of(taker: Taker, modules: Mapping[str, nn.Module]) -> list[Slot]:
    """Return a slot for each module and port at which something is taken."""
    grouped: dict[tuple[str, str], list[Kind]] = {}
    for kind in taker.kinds:
        if kind.site.path not in modules:
            advice = near(kind.site.path, modules)
            raise SiteError(f"Site: expected a module {kind.site.path!r}, got none.{advice}")
        grouped.setdefault((kind.site.path, kind.site.port), []).append(kind)
    return [Slot(taker, port, kinds, modules[path]) for (path, port), kinds in grouped.items()]
