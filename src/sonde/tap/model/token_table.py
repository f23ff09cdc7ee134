"""Find the token embedding table of a model: the module that receives the token ids.

The first embedding of the module tree may hold positions or segments, may never run (a table that
encoder and decoder share), or may belong to the decoder.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.site import Site
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import changed, find, leaves, named_inputs, replaced, with_inputs
from sonde.tap.hooks.session import Session
from sonde.tap.model.float_inputs import LABELS, MASK

IDS = "input_ids"
BESIDE = ("decoder", "position", "token_type")
"""Parts of the names of integers that are no tokens of the model's own input."""
TABLE = 2
"""The kind of a module that gives each token its own vector, whatever its position."""


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Embedding table that maps tokens to states.

    Parameters
    ----------
    site : Site
        The output of the table.
    module : nn.Module
    ids : str
        Name of the argument that holds the token ids.
    others : tuple of str
        Further modules that are fed these ids and turn each token into numbers.
    value : Float[Tensor, "row token dim"]
        What the table returned in the forward that found it.
    point : Tensor or None
        The leaf of the graph that stood for ``value`` in that forward, if a graph was kept.
    outputs
        What the model returned.
    """

    site: Site
    module: nn.Module
    ids: str
    others: tuple[str, ...]
    value: Float[Tensor, "*row dim"]
    point: Tensor | None
    outputs: Any


@dataclass(eq=False)
class _Call:
    """One call of a module with token ids as input."""

    path: str
    module: nn.Module
    number: int
    ids: str
    given: tuple[tuple[Any, ...], dict[str, Any]]
    n_inside: int
    output: Tensor | None = None
    point: Tensor | None = None
    has_inner: bool = False


@dataclass(eq=False)
class _Watch:
    """The calls of one forward pass; ``known`` holds all integer inputs by memory address."""

    ids: dict[str, Tensor]
    known: dict[int, str]
    keeps_graph: bool
    calls: list[_Call] = field(default_factory=list[_Call])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    n_calls: int = 0
    open: list[_Call | None] = field(default_factory=list["_Call | None"])

    def before(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Store the arguments of a call that receives token ids."""
        number = self.counts[path] = self.counts.get(path, -1) + 1
        self.n_calls += 1
        name = next(filter(None, map(self._name_of, leaves((args, kwargs)).values())), None)
        given = args, kwargs
        self.open.append(
            None if name is None else _Call(path, module, number, name, given, self.n_calls)
        )

    def after(self, output: Any) -> Any:
        """Store the output of a call that returns one vector per token."""
        call, leaf = self.open.pop(), find(output, None)
        if call is None or leaf is None or call.has_inner:
            return None
        ids = self.ids[call.ids]
        if leaf.ndim != ids.ndim + 1 or leaf.shape[:-1] != ids.shape:
            return None
        call.n_inside = self.n_calls - call.n_inside
        call.output = leaf.detach().clone()
        self.calls.append(call)
        for outer in self.open:
            if outer is not None and outer.ids == call.ids:
                outer.has_inner = True
        if not self.keeps_graph:
            return None
        call.point = leaf.detach().requires_grad_(True)
        return replaced(output, leaf, call.point.clone())  # what comes next may work in place

    def _name_of(self, x: Tensor) -> str | None:
        if x.is_floating_point() or x.dtype == torch.bool:
            return None
        if (name := self.known.get(x.untyped_storage().data_ptr())) is not None:
            return name if name in self.ids and self.ids[name].numel() == x.numel() else None
        return next((name for name, ids in self.ids.items() if _is_copy(x, ids)), None)


def find_token_table(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], keeps_graph: bool = False
) -> TokenTable | None:
    """Return the table that receives a call's token ids, or None.

    The model runs once, in eval mode with its parameters frozen. Of several modules that are fed
    the ids, the table is the one that gives each token its own vector, whatever its position; of
    several such tables the one that the model says is its own, else the largest. An
    encoder-decoder's table is its encoder's.

    Examples
    --------
    >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    >>> found = find_token_table(net, (torch.tensor([[1, 2, 3]]),), {})
    >>> str(found.site), found.ids
    ('0:out', 'input')
    """
    return next(iter(find_token_tables(module, args, kwargs, keeps_graph)), None)


def find_token_tables(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], keeps_graph: bool = False
) -> list[TokenTable]:
    """Return the table of each input of integers that has one, the likeliest token table first.

    One forward pass, as for ``find_token_table``.
    """
    names = ModuleNames(module)
    root = names.modules[""]
    if not token_ids(named_inputs(root, args, kwargs)):
        return []
    # Copies: a module that is fed the same numbers from elsewhere (the decoder's) is another one.
    args, kwargs = with_inputs(root, args, kwargs, lambda _, x: x.clone())
    given = named_inputs(root, args, kwargs)
    ids = token_ids(given)
    names_of = {x.untyped_storage().data_ptr(): name for name, x in given.items()}
    watch = _Watch(ids, names_of, keeps_graph)
    parts = [(path, part) for path, part in names.primary() if path]
    with Session(
        module,
        outputs=[(part, watch.after) for _, part in parts],
        inputs=[(part, partial(watch.before, path, part)) for path, part in parts],
        with_grad=True,
    ) as session:
        outputs = session.run(args, kwargs)
    with Session(module), torch.no_grad():
        tried = [(call, _kind(call, ids[call.ids])) for call in watch.calls]
    calls, kinds = [c for c, kind in tried if kind], [kind for _, kind in tried if kind]
    own = _own_table(root)
    order = sorted(range(len(calls)), key=lambda i: _rank(calls[i], kinds[i], own), reverse=True)
    tables: list[TokenTable] = []
    for name in dict.fromkeys(calls[i].ids for i in order):
        first, *rest = (i for i in order if calls[i].ids == name)
        best, others = calls[first], [calls[i].path for i in rest if kinds[i] == TABLE]
        site = Site(best.path, best.number if watch.counts[best.path] else None)
        assert best.output is not None  # noted with the call
        tensors = best.output, best.point, outputs
        tables.append(TokenTable(site, best.module, name, tuple(dict.fromkeys(others)), *tensors))
    return tables


def token_ids(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the integers that may be token ids: ``input_ids``, or all unnamed ones."""
    if isinstance(named.get(IDS), Tensor):
        return {IDS: named[IDS]}
    return {
        name: x
        for name, x in named.items()
        if x.ndim
        and not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
        and MASK not in name.lower()
        and name not in LABELS
        and not any(word in name.lower() for word in BESIDE)
    }


def _own_table(root: nn.Module) -> Any:
    """Return the embedding table that a model declares, or None."""
    get = getattr(root, "get_input_embeddings", None)
    try:
        return get() if callable(get) else None
    except NotImplementedError:
        return None


def _rank(call: _Call, kind: int, own: Any) -> tuple[int, bool, int]:
    """Return a rank; the call with the largest rank is most likely the token table's."""
    return kind, call.module is own, sum(p.numel() for p in call.module.parameters())


def _kind(call: _Call, ids: Int[Tensor, "..."]) -> int:
    """Return TABLE, 1 if vectors depend on token and position, or 0 for other modules."""
    assert call.output is not None  # noted with the call
    flat = call.output.flatten(0, -2)
    if getattr(call.module, "max_norm", None) is not None:
        return TABLE  # each look-up scales the rows that it reads: none is made but the model's own
    if ids.shape[-1] == 1 and call.n_inside:
        return 0  # of single tokens it is not known whether they meet inside
    other = torch.where(ids > 0, ids - 1, ids + 1)
    first = torch.cat((other[..., :1], ids[..., 1:]), dim=-1)
    moved = _again(call, ids, first)
    is_own = (first == ids).flatten() == (flat == (flat if moved is None else moved)).all(1)
    if moved is not None and not bool(is_own.all()):
        return 0
    rolled = _again(call, ids, ids.flatten().roll(1).view_as(ids))
    is_same = rolled is not None and torch.allclose(
        rolled, flat.roll(1, 0), rtol=1e-4, atol=1e-6, equal_nan=True
    )
    return TABLE if is_same else 1


def _again(call: _Call, ids: Tensor, new: Tensor) -> Float[Tensor, "token dim"] | None:
    """Return a module's output for other ids, or None if it does not accept them."""

    def put(_: str, x: Tensor) -> Tensor:
        is_ids = not x.is_floating_point() and _is_copy(x, ids)
        return new.to(x).view_as(x) if is_ids else x

    args, kwargs = changed(call.given, put)
    try:
        leaf = find(call.module(*args, **kwargs), None)
    except Exception:  # whatever a module raises on a token that it does not know
        return None
    return None if leaf is None else leaf.flatten(0, -2)


def _is_copy(x: Tensor, ids: Tensor) -> bool:
    is_like = x.numel() == ids.numel() and x.device == ids.device
    return is_like and bool((x.flatten() == ids.flatten()).all())
