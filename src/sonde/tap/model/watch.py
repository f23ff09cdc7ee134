"""One forward pass with the raw tensors at some sites, for checks of the model itself.

For rows of data use a stream; this keeps whole outputs and is meant for a handful of examples.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch
from sonde.core.site import ATTENTION_PORTS, Site
from sonde.tap.attention.opening import watch_attention
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find, find_input
from sonde.tap.hooks.session import Session
from sonde.tap.model.input_types import place_of
from sonde.tap.model.placement import Place


@dataclass(frozen=True, eq=False)
class Watched:
    """Outputs recorded in one forward pass.

    Parameters
    ----------
    tensors : dict of str to Tensor
        A copy of the raw tensor at each site that ran, by the site's text.
    output : object
        What the model returned.
    """

    tensors: dict[str, Tensor]
    output: Any


Meter = Callable[[InputBatch], None]
_METER: ContextVar[Meter | None] = ContextVar("meter of forwards", default=None)


@contextmanager
def metered(note: Meter | None) -> Iterator[None]:
    """Call ``note``, if given, with the inputs of every watched forward pass in this block."""
    before = _METER.set(note)
    try:
        yield
    finally:
        _METER.reset(before)


def watch(
    module: nn.Module,
    batch: InputBatch,
    sites: Iterable[Site],
    *,
    as_found: bool = False,
    around: AbstractContextManager[Any] | None = None,
    place: Place | None = None,
) -> Watched:
    """Run a model once and return the raw tensors at sites of every port but ``grad``.

    Parameters
    ----------
    module : nn.Module
    batch : InputBatch
        Used as it is: nothing is padded, cut or moved to another side.
    sites : iterable of Site
        With a call number where a module runs several times; without one, or with ``last``, the
        last call counts.
    as_found : bool, default=False
        Leave training flags as they are instead of reading in eval mode.
    around : context manager, optional
        Entered for the forward alone.
    place : Place, optional
        Where the model takes its inputs; found by trial if their types leave it open.
    """
    names = ModuleNames(module)
    taken: dict[str, Tensor] = {}
    outputs: list[tuple[nn.Module, Callable[..., Any]]] = []
    inputs: list[tuple[nn.Module, Callable[..., Any]]] = []
    inside: list[tuple[nn.Module, str, Callable[..., Any]]] = []
    for path, wanted in _by_path(sites).items():
        part = names.modules[path]
        leaving = [s for s in wanted if s.port in ("out", "grad")]
        entering = [s for s in wanted if s.port == "in"]
        if leaving:
            outputs.append((part, _after(leaving, taken)))
        if entering:
            inputs.append((part, _before(part, entering, taken)))
        for port in ATTENTION_PORTS:
            if at_port := [s for s in wanted if s.port == port]:
                inside.append((part, port, _after(at_port, taken)))
    place = place_of(module, batch) if place is None else place
    args, kwargs = place.call(batch.args, batch.kwargs)
    look = watch_attention(inside)
    session = Session(
        module,
        outputs,
        inputs,
        reading=not as_found,
        inside=look,
        restores=False,  # callers ask which buffers move
    )
    if (note := _METER.get()) is not None:
        note(batch)
    with session, around if around is not None else nullcontext():
        output = session.run(args, kwargs)
    return Watched(taken, output)


def _by_path(sites: Iterable[Site]) -> dict[str, list[Site]]:
    by_path: dict[str, list[Site]] = {}
    for site in sites:
        by_path.setdefault(site.path, []).append(site)
    return by_path


def _after(sites: Sequence[Site], taken: dict[str, Tensor]) -> Callable[[Any], None]:
    call = -1

    def after(output: Any) -> None:
        nonlocal call
        call += 1
        for site in sites:
            leaf = find(output, site.key)
            if leaf is not None and (not isinstance(site.call, int) or site.call == call):
                taken[str(site)] = leaf.detach().clone()

    return after


def _before(
    module: nn.Module, sites: Sequence[Site], taken: dict[str, Tensor]
) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
    call = -1

    def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal call
        call += 1
        for site in sites:
            if isinstance(site.call, int) and site.call != call:
                continue
            try:
                taken[str(site)] = find_input(module, args, kwargs, site.key)[1].detach().clone()
            except SiteError:
                continue

    return before
