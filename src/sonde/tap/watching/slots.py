"""The modules that an onlooker watches."""

from collections.abc import Mapping, Sequence

from torch import nn

from sonde.core.errors import SiteError, near
from sonde.tap.rows.kind import Kind


class Slot:
    """One module and port: what is read there, and how often it was called in this forward."""

    def __init__(self, module: nn.Module, port: str, kinds: Sequence[Kind]) -> None:
        self.module, self.port, self.kinds = module, port, tuple(kinds)
        self.calls = 0

    def called(self) -> tuple[list[Kind], int]:
        """Count a call, and return what is read of it and its number."""
        call, self.calls = self.calls, self.calls + 1
        return [
            k for k in self.kinds if not isinstance(k.site.call, int) or k.site.call == call
        ], call


def slots_of(kinds: Sequence[Kind], modules: Mapping[str, nn.Module]) -> list[Slot]:
    """Return a slot for each module and port at which something is read."""
    grouped: dict[tuple[str, str], list[Kind]] = {}
    for kind in kinds:
        if kind.site.path not in modules:
            advice = near(kind.site.path, modules)
            raise SiteError(f"Site: expected a module {kind.site.path!r}, got none.{advice}")
        grouped.setdefault((kind.site.path, kind.site.port), []).append(kind)
    return [Slot(modules[path], port, mine) for (path, port), mine in grouped.items()]
