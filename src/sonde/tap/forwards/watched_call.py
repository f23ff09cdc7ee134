"""Sites read from a live model, and the data of a running call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sonde.core.errors import SiteError, near
from sonde.tap.forwards.backward import Backward
from sonde.tap.forwards.carried_logits import CarriedLogits
from sonde.tap.forwards.lone_encoder import EncoderRun
from sonde.tap.forwards.watched_forward import WatchedForward
from sonde.tap.hooks.call import CallArguments
from sonde.tap.rows.kind import Kind


@dataclass(frozen=True, eq=False)
class WatchedSite:
    """One module and port with the kinds of rows read there."""

    module: nn.Module
    port: str
    kinds: tuple[Kind, ...]

    def of_call(self, call: int) -> list[Kind]:
        """Return the kinds of rows that are read from a call of the module."""
        return [k for k in self.kinds if not isinstance(k.site.call, int) or k.site.call == call]


def slots_of(kinds: Sequence[Kind], modules: Mapping[str, nn.Module]) -> list[WatchedSite]:
    """Return a slot for each module and port that is read."""
    grouped: dict[tuple[str, str], list[Kind]] = {}
    for kind in kinds:
        if kind.site.path not in modules:
            advice = near(kind.site.path, modules)
            raise SiteError(f"Site: expected a module {kind.site.path!r}, got none.{advice}")
        grouped.setdefault((kind.site.path, kind.site.port), []).append(kind)
    return [
        WatchedSite(modules[path], port, tuple(sites)) for (path, port), sites in grouped.items()
    ]


@dataclass(eq=False)
class WatchedText:
    """Texts that one forward pass begins and later passes continue.

    Attributes
    ----------
    over : Tensor or None
        Sequences that ended before the last forward.
    carried : CarriedLogits
        Logits of the next token.
    seen : object
        What the watcher keeps of these texts.
    """

    over: Tensor | None = None
    carried: CarriedLogits = field(default_factory=CarriedLogits)
    seen: Any = None


@dataclass(eq=False)
class WatchedCall:
    """A running forward pass of the whole model, or of its encoder alone.

    Attributes
    ----------
    forward : WatchedForward or None
        None for an encoder alone, and once the forward has ended.
    has_inner : bool
        Whether the model called itself in it.
    """

    call: CallArguments
    text: WatchedText
    forward: WatchedForward | None = None
    encoder: EncoderRun | None = None
    backward: Backward | None = None
    given: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
    has_inner: bool = False
    calls: dict[WatchedSite, int] = field(default_factory=dict[WatchedSite, int])

    def called(self, slot: WatchedSite) -> tuple[list[Kind], int]:
        """Count a call; return the kinds of rows to read from it, and its index."""
        call = self.calls[slot] = self.calls.get(slot, -1) + 1
        return slot.of_call(call), call

    def take(self, kind: Kind, leaf: Tensor, call: int) -> None:
        """Store the rows of one call of a site."""
        if self.encoder is not None:
            self.encoder.taken.append((kind, leaf.detach().clone(), call))
        elif self.forward is not None:
            self.forward.take(kind, leaf, call)
