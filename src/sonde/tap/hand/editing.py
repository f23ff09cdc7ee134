"""Run a live model with activations changed at some sites."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import ShapeError, SiteError
from sonde.core.inputs import Model
from sonde.core.site import Site
from sonde.core.token_masks import find_mask, real_tokens
from sonde.tap.hooks.cache import cache_in, cached_length
from sonde.tap.hooks.names import Names
from sonde.tap.hooks.outputs import arguments, find, find_input, replaced
from sonde.tap.hooks.session import Session, active_sessions, check_readable
from sonde.tap.model.axes import guess_axes
from sonde.tap.model.sites import Pattern, resolve


@contextmanager
def editing(
    model: Model | nn.Module, edit: Edit, sites: Pattern | Iterable[Pattern]
) -> Iterator[None]:
    """Apply an edit at some sites of a live model inside a ``with`` block.

    A module that runs several times is edited at each call unless ``@call`` is given. Taps, also
    those opened before, read what the next module receives. Only this thread's calls are edited.

    Parameters
    ----------
    model : Model or nn.Module
    edit : Edit
    sites : pattern, Site, or several
        Ports ``out`` and ``in``.

    Raises
    ------
    SiteError
        If the model is called with a key-value cache that was filled before, or a site never runs.

    Examples
    --------
    >>> import torch
    >>> from sonde.core.edit import Scale
    >>> net = nn.Sequential(nn.Identity(), nn.Identity())
    >>> with editing(net, Scale(3.0), "0"):
    ...     net(torch.ones(1, 2)).tolist()
    [[3.0, 3.0]]
    """
    module = model.module if isinstance(model, Model) else model
    check_readable(module)
    editor = _Editor(module, edit, resolve(module, sites))
    with editor.session:
        for session in active_sessions():
            if session.reading:
                session.move_to_end()
        yield
    editor.check_ran()


class _Editor:
    """Applies one edit; knows the mask and positions of the running call."""

    def __init__(self, root: nn.Module, edit: Edit, sites: list[Site]) -> None:
        self.root, self.edit, self.sites = root, edit, sites
        self.modules = Names(root).modules
        self.steps: Counter[str] = Counter()
        self.n_calls = 0
        self.calls: Counter[str] = Counter()
        self.own_caches: list[Any] = []
        self.mask: Tensor | None = None
        self.position: Tensor | None = None
        if any(site.port == "grad" for site in sites):
            raise SiteError("editing: gradients cannot be edited. Name the port out or in.")
        self.session = Session(
            root,
            outputs=[
                (self.modules[s.path], partial(self._after, s)) for s in sites if s.port == "out"
            ],
            inputs=[
                (root, self._begin),
                *(
                    (self.modules[s.path], partial(self._before, s))
                    for s in sites
                    if s.port == "in"
                ),
            ],
            reading=False,
        )

    def check_ran(self) -> None:
        """Raise if the model ran but a site never did."""
        silent = [str(s) for s in self.sites if self.n_calls and not self.steps[str(s)]]
        if silent:
            raise SiteError(
                f"editing: {', '.join(silent)} never ran, so the edit had no effect there. "
                "Name a module that runs."
            )

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = arguments(self.root, args, kwargs)
        cache = cache_in(named)
        is_own = any(cache is known for known in self.own_caches)
        if cache is not None and not is_own:
            if cached_length(cache) > 0:
                raise SiteError(
                    "editing: this key-value cache was filled without the edit, so earlier tokens "
                    "would stay unedited. Start from an empty cache inside the with block."
                )
            self.own_caches.append(cache)
        self.n_calls += 1
        self.calls.clear()
        mask = find_mask(named)
        self.mask = None if mask is None else real_tokens(*mask)
        position = named.get("position_ids")
        self.position = position if isinstance(position, Tensor) and position.ndim == 2 else None
        if self.position is None and self.mask is not None:
            self.position = (self.mask.long().cumsum(1) - 1).clamp(min=0)

    def _after(self, site: Site, output: Any) -> Any:
        if not self._is_turn(site):
            return None
        leaf = find(output, site.key)
        if leaf is None:
            raise SiteError(f"editing: {str(site)!r} returned no such floating-point tensor.")
        new = self._changed(leaf, site)
        return None if new is leaf else replaced(output, leaf, new)

    def _before(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._is_turn(site):
            return None
        _, leaf = find_input(self.modules[site.path], args, kwargs, site.key)
        new = self._changed(leaf, site)
        return None if new is leaf else (replaced(args, leaf, new), replaced(kwargs, leaf, new))

    def _is_turn(self, site: Site) -> bool:
        call = self.calls[str(site)]
        self.calls[str(site)] += 1
        if site.call == "last":
            raise SiteError("editing: which call is the last is known only after it. Write @0, @1.")
        return not isinstance(site.call, int) or site.call == call

    def _changed(self, leaf: Tensor, site: Site) -> Tensor:
        step, self.steps[str(site)] = self.steps[str(site)], self.steps[str(site)] + 1
        axes = guess_axes(leaf, self.modules[site.path], self.root) if leaf.ndim > 1 else None
        dim = axes.words.index("dim") if axes is not None else 0
        x = leaf if dim == leaf.ndim - 1 else leaf.movedim(dim, -1)
        new = self.edit.apply(x, site, self._context(leaf, step))
        if new is x:
            return leaf
        if new.shape != x.shape or new.dtype != x.dtype:
            raise ShapeError(
                f"{type(self.edit).__name__}.apply: expected shape {tuple(x.shape)} and "
                f"{x.dtype}, got {tuple(new.shape)} and {new.dtype} at {site}. "
                "An edit keeps shape and type."
            )
        return new if dim == leaf.ndim - 1 else new.movedim(-1, dim)

    def _context(self, leaf: Tensor, step: int) -> EditContext:
        return EditContext(_latest(self.mask, leaf), _latest(self.position, leaf), call=step)


def _latest(column: Tensor | None, leaf: Tensor) -> Tensor | None:
    """Return the part of a (example, token) column that this call's states are about."""
    if column is None or leaf.ndim < 3 or column.shape[0] != leaf.shape[0]:
        return None
    if column.shape[1] < leaf.shape[1]:
        return None
    return column[:, column.shape[1] - leaf.shape[1] :]
