"""Trial changes of model parts: scales, activations, norms, positions and rotations.

Each change is a context manager around a forward; the model is as it was afterwards.
"""

import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sonde.findings.evidence.trials.block_order import pairs_by_jumps
from sonde.tap import LiveStream
from sonde.tap.model.blocks import block_paths
from sonde.tap.model.readout import head_module

FIRST: Final = (0.0, 0.4, 2.5)
FACTORS: Final = (-1.0, 0.0, 0.0625, 0.125, 0.18, 0.25, 0.33, 0.5, 0.7, 1.4, 2.0, 3.0, 4.0, 8.0)
EPSILONS: Final = (1e-6, 1e-5, 1e-3, 1e-1)
BASES: Final = (1e2, 1e3, 1e4, 5e4, 1e5, 5e5, 1e6, 1e7)
SHIFTS: Final = (-1, -2, -3, -4, 1, 2)
MOST_EXCHANGED: Final = 8
MOST_HOPEFUL: Final = 2
REMOVED: Final = 0.03
"""Part of the jumps of weights over depth that a hopeful exchange removes."""
ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "leaky_relu of slope 0.01": functional.leaky_relu,
    "square of relu": lambda x: functional.relu(x).square(),
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")
_EPSILON = ("eps", "variance_epsilon", "epsilon")


@dataclass(frozen=True)
class PartChange:
    """A change of one part, or of the same part in every block.

    Parameters
    ----------
    words : str
        Description that follows "with" in a sentence.
    line : str
        How to make the change, as code or as an instruction.
    paths : tuple of str
        The modules that it changes; ``logits`` if it changes the answers alone.
    around : callable
        Returns the context manager in which the model is changed.
    near : callable or None
        Returns more changes of the same parts, to try if this change helps.
    factor : float
        Factor on the logits.
    alone : bool
        Whether it is worth trying by itself, if the budget does not reach for the usual changes.
    turn : int
        When a large model tries it: a change of all layers at once has a turn from 1 on, the others
        have 0 and are left out.
    """

    words: str
    line: str
    paths: tuple[str, ...]
    around: Callable[[], AbstractContextManager[Any]]
    near: Callable[[], Sequence["PartChange"]] | None = None
    factor: float = 1.0
    alone: bool = False
    turn: int = 0


def part_changes(stream: LiveStream) -> list[PartChange]:
    """Return the changes to try: orders of blocks first, then from simple to complex kinds."""
    names, probe = stream.probe.names, stream.probe
    ran = {n: m for n, m in names.modules.items() if n and probe.calls(n) == 1}
    blocks = [b for b in block_paths(names, probe) if b in ran]
    roles = _roles(ran)
    changes = [
        *pooled(stream, blocks),
        *_exchanged(names.modules, blocks),
        *_tied(stream),
        *_activations(stream),
        *_epsilons(ran),
        *_means(ran),
        *_rotations(stream, ran, roles),
    ]
    for role, paths in roles.items():
        if len(paths) > 1 and all(_is_linear(ran[p]) for p in paths):
            turn = 3 if _is_at_an_end(role, roles) else 0
            changes += [replace(_scaled(ran, role, paths, f), turn=turn) for f in (0.3, 3.0)]
    changes += _identities(ran)
    changes += [_scaled(ran, path, (path,), -1.0) for path in _inner_layers(ran, blocks)]
    for path in _members(ran, blocks):
        changes += [_scaled(ran, path, (path,), f) for f in FIRST]
    changes += _moved(ran, roles)
    return changes


def pooled(stream: LiveStream, blocks: Sequence[str]) -> list[PartChange]:
    """Return trials of other poolings over tokens: the mean, and the first token.

    What a model pools is its own code; where every token has the mean of all, whatever it picks is
    the mean. Empty unless a classifier has blocks of tokens.
    """
    path = _last_of_tokens(stream, blocks)
    if path is None or stream.model.task == "causal":
        return []
    module, root = stream.probe.names.modules[path], stream.model.module
    kinds = {
        "the mean over tokens": (
            _mean_of_tokens, "(states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
        ),
        "the first token": (lambda y, _: y[:, :1].expand_as(y), "states[:, 0]"),
    }  # fmt: skip
    return [
        PartChange(
            f"{words} pooled from the states of {path}",
            f"pool {words} of {path}: {line}",
            (path,),
            partial(_pooling, root, module, change),
            alone=True,
        )
        for words, (change, line) in kinds.items()
    ]


def _last_of_tokens(stream: LiveStream, blocks: Sequence[str]) -> str | None:
    """Return the last block, or its norm, whose output has a state for each token."""
    probe = stream.probe
    if not blocks or not any(k.startswith("attention") for k in _argument_names(stream)):
        return None
    last = probe.order(blocks[-1], 0, "out")
    after = [
        name
        for name, module in probe.names.modules.items()
        if "Norm" in type(module).__name__
        and probe.calls(name) == 1
        and probe.order(name, 0, "out") > last
        and "." not in name.removeprefix(blocks[-1].split(".")[0] + ".")
    ]
    return after[-1] if after else blocks[-1]


def _argument_names(stream: LiveStream) -> list[str]:
    return list(inspect.signature(stream.model.module.forward).parameters)


def _mean_of_tokens(y: Tensor, mask: Tensor | None) -> Tensor:
    weight = y.new_ones(y.shape[:2]) if mask is None else mask.to(y)
    mean = (y * weight[..., None]).sum(1, keepdim=True) / weight.sum(1)[:, None, None].clamp(min=1)
    return mean.expand_as(y)


@contextmanager
def _pooling(
    root: nn.Module, module: nn.Module, change: Callable[[Tensor, Tensor | None], Tensor]
) -> Iterator[None]:
    """Replace a module's token states by their pooled state, using the model's mask."""
    given: list[Tensor | None] = [None]
    names = inspect.signature(root.forward)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = names.bind_partial(*args, **kwargs).arguments.get("attention_mask")
        given[0] = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def pooled(_: Any, y: Tensor) -> Tensor:
        mask = given[0]
        fits = y.ndim == 3 and (mask is None or mask.shape == y.shape[:2])
        return change(y, mask) if fits else y

    handle = root.register_forward_pre_hook(before, with_kwargs=True)
    try:
        with hooked([module], pooled):
            yield
    finally:
        handle.remove()


def _roles(ran: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Return the modules at the same position in different blocks."""
    paths_of: dict[str, list[str]] = {}
    for name in ran:
        if _NUMBER.search(name):
            paths_of.setdefault(_NUMBER.sub("*", name), []).append(name)
    return {role: tuple(paths) for role, paths in paths_of.items()}


def _is_at_an_end(role: str, roles: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether a layer is the first or the last of its part of a block."""
    parent = role.rpartition(".")[0]
    inside = [other for other in roles if other.rpartition(".")[0] == parent]
    return role in (inside[0], inside[-1])


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _members(ran: Mapping[str, nn.Module], blocks: Sequence[str]) -> list[str]:
    """Return the parts of blocks with weights; without blocks, all layers but the last."""
    held = [n for n, m in ran.items() if next(m.parameters(), None) is not None]
    if blocks:
        inside = [n for n in held if n.rpartition(".")[0] in blocks]
        tables = [n for n in held if isinstance(ran[n], nn.Embedding)]
        return inside + tables
    return [n for n in held if not any(True for _ in ran[n].children())][:-1]


def _inner_layers(ran: Mapping[str, nn.Module], blocks: Sequence[str]) -> list[str]:
    """Return linear layers nested inside the parts of blocks, such as output projections."""
    parts = set(_members(ran, blocks))
    inside = [n for n, m in ran.items() if n not in parts and _is_linear(m)]
    return [n for n in inside if any(n.startswith(f"{block}.") for block in blocks)]


@contextmanager
def hooked(modules: Sequence[nn.Module], change: Callable[[Any, Tensor], Tensor]) -> Iterator[None]:
    """Replace the output of modules by ``change(first input, output)``."""

    def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        given = args[0] if args else None
        if isinstance(out, tuple):
            return (change(given, out[0]), *out[1:])
        return change(given, out) if isinstance(out, Tensor) else out

    handles = [module.register_forward_hook(after) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def with_values(owners: Sequence[tuple[Any, str]], values: Sequence[Any]) -> Iterator[None]:
    """Give attributes of some objects other values, and put them back."""
    before = [getattr(owner, name) for owner, name in owners]
    try:
        for (owner, name), value in zip(owners, values, strict=True):
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), value in zip(owners, before, strict=True):
            setattr(owner, name, value)


def _scaled(
    ran: Mapping[str, nn.Module], name: str, paths: Sequence[str], factor: float
) -> PartChange:
    def near() -> list[PartChange]:
        every = [_scaled(ran, name, paths, f) for f in FACTORS]
        return every + [_scaled(ran, p, (p,), f) for p in paths if len(paths) > 1 for f in FIRST]

    words = f"the output of {name} times {factor:g}" if factor else f"{name} left out"
    return PartChange(
        words,
        f"y = {factor:g} * y, where y is the output of {name}",
        tuple(paths),
        lambda: hooked([ran[p] for p in paths], lambda _, y: factor * y),
        near if factor in (*FIRST, 0.3, 3.0) else None,
    )


def answers_scaled(factor: float) -> PartChange:
    """Return the change that scales the logits, which needs no further forward pass."""
    words = f"the logits times {factor:g}"
    line = f"logits = {factor:g} * logits"
    return PartChange(words, line, ("logits",), nullcontext, factor=factor)


def _activations(stream: LiveStream) -> Iterator[PartChange]:
    kinds: dict[str, list[str]] = {}
    for name, module in stream.probe.names.modules.items():
        held = (*module.children(), *module.buffers(), *module.parameters())
        if not held and stream.probe.calls(name) > 0 and _acts(module):
            kinds.setdefault(type(module).__name__, []).append(name)
    for kind, paths in kinds.items():
        modules = [stream.probe.names.modules[p] for p in paths]
        where = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        for name, function in ACTIVATIONS.items():
            if _is_the_same(modules[0], function):
                continue
            yield PartChange(
                f"{name} for {kind} at {where}",
                f"use {name} where the model has {kind}",
                tuple(paths),
                partial(hooked, modules, lambda x, y, f=function: y if x is None else f(x)),
                turn=1,
            )


def _is_the_same(module: nn.Module, function: Callable[[Tensor], Tensor]) -> bool:
    x = torch.linspace(-3, 3, 12).reshape(1, 12)
    with torch.no_grad():
        return torch.allclose(module(x), function(x), atol=1e-6)


def _tied(stream: LiveStream) -> Iterator[PartChange]:
    """Yield a head with the token embeddings as its weight, where it has another of their shape."""
    head = head_module(stream.probe)
    own = None if head is None else _weight(head)
    if stream.model.task != "causal" or head is None or own is None:
        return
    modules = stream.probe.names.modules
    path = next((n for n, m in modules.items() if m is head), "")
    table = next((m for m in modules.values() if isinstance(m, nn.Embedding)), None)
    if not path or table is None or table.weight.shape != own.shape:
        return
    if table.weight.data_ptr() != own.data_ptr():
        yield PartChange(
            f"the token embeddings as the weight of {path}",
            "model.tie_weights(), with tie_word_embeddings true in the configuration",
            (path,),
            partial(with_values, [(head, "weight")], [table.weight]),
            turn=1,
        )


def _identities(ran: Mapping[str, nn.Module]) -> Iterator[PartChange]:
    """Yield a layer norm in place of each ``nn.Identity``."""
    for name, module in ran.items():
        if type(module) is nn.Identity:
            yield PartChange(
                f"a layer norm at {name}, which does nothing",
                f"{name} = nn.LayerNorm(width)",
                (name,),
                partial(hooked, [module], lambda _, y: functional.layer_norm(y, y.shape[-1:])),
            )


def _acts(module: nn.Module) -> bool:
    """Return whether a module acts elementwise and changes its input, like an activation."""
    x = torch.linspace(-3, 3, 12).reshape(1, 12)
    try:
        with torch.no_grad():
            y, flipped = module(x), module(x.flip(1))
    except Exception:  # a module that needs other inputs is no activation
        return False
    if not isinstance(y, Tensor) or y.shape != x.shape or torch.equal(x, y):
        return False
    return torch.allclose(y.flip(1), flipped) and not torch.allclose(y.sum(), torch.ones(()))


def _epsilons(ran: Mapping[str, nn.Module]) -> Iterator[PartChange]:
    kinds: dict[tuple[str, str, float], list[str]] = {}
    for name, module in ran.items():
        for field in _EPSILON:
            value = vars(module).get(field)
            if isinstance(value, float) and value > EPSILONS[0]:
                kinds.setdefault((type(module).__name__, field, value), []).append(name)
    for (kind, field, value), paths in kinds.items():
        owners = [(ran[p], field) for p in paths]
        for eps in (e for e in EPSILONS if not 0.3 < e / value < 3):
            yield PartChange(
                f"eps {eps:g} for {value:g} in {len(paths)} {kind}",
                f"{paths[0]}.{field} = {eps:g}" + (", and in the others" if len(paths) > 1 else ""),
                tuple(paths),
                partial(with_values, owners, [eps] * len(owners)),
                turn=2,
            )


def _means(ran: Mapping[str, nn.Module]) -> Iterator[PartChange]:
    """Yield additions of 1 and of -1 to the weights of all norms."""
    paths = [n for n, m in ran.items() if "Norm" in type(m).__name__ and _weight(m) is not None]
    paths = [p for p in paths if bool((_weight(ran[p]) != 0).all())]  # type: ignore[union-attr]
    for step in (1.0, -1.0) if paths else ():

        @contextmanager
        def around(step: float = step) -> Iterator[None]:
            weights = [w for p in paths if (w := _weight(ran[p])) is not None]
            before = [w.clone() for w in weights]
            try:
                for weight in weights:
                    weight.add_(step)
                yield
            finally:
                for weight, old in zip(weights, before, strict=True):
                    weight.copy_(old)

        yield PartChange(
            f"{step:+g} on the weights of all {len(paths)} norms",
            f"norm.weight += {step:g} for every norm",
            tuple(paths),
            around,
            turn=2,
        )


def _weight(module: nn.Module) -> Tensor | None:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return None if weight is None else weight.data


def _rotations(
    stream: LiveStream, ran: Mapping[str, nn.Module], roles: Mapping[str, tuple[str, ...]]
) -> Iterator[PartChange]:
    """Yield rotary embeddings with another base, another scale or another pair layout."""
    tables = [
        (n, b)
        for n, m in stream.probe.names.modules.items()
        for field, b in m.named_buffers(recurse=False)
        if field == "inv_freq" and b.ndim == 1 and len(b) > 1 and float(b[-1]) > 0
    ]
    if not tables:
        return
    path, table = tables[0]
    n = len(table)
    base = float(table[-1] / table[0]) ** (-n / (n - 1))
    steps = torch.arange(n, device=table.device) / n
    for new in (b for b in BASES if not 0.8 < b / base < 1.25):
        yield _of_tables(
            [t for _, t in tables], lambda t, b=new: float(t[0]) * b ** -steps.to(t),
            f"rope_theta {new:,.0f} for {base:,.0f} in {path}", f"rope_theta = {new:.0f}", path, 1,
        )  # fmt: skip
    for factor in (0.125, 0.25, 0.5, 2.0, 4.0, 8.0):
        yield _of_tables(
            [t for _, t in tables], lambda t, f=factor: t * f,
            f"positions times {factor:g} in {path}", f"rope factor {1 / factor:g}", path, 4,
        )  # fmt: skip
    paths = [p for r, some in roles.items() if _turns(r, ran[some[0]], 2 * n) for p in some]
    for to_halves in (True, False):
        words = "halves" if to_halves else "neighbours"
        yield PartChange(
            f"rotated pairs of queries and keys as {words}",
            f"reorder the rows of {_NUMBER.sub('*', paths[0]) if paths else 'q_proj'} and of the "
            f"keys in each head: pairs as {words}",
            tuple(paths),
            partial(
                hooked, [ran[p] for p in paths], lambda _, y, h=to_halves: _paired(y, 2 * n, h)
            ),
            turn=3,
        )


def _turns(role: str, module: nn.Module, width: int) -> bool:
    last = role.rpartition(".")[2]
    return (
        _is_linear(module) and last[:1] in "qk" and getattr(module, "out_features", 0) % width == 0
    )


def _paired(y: Tensor, width: int, to_halves: bool) -> Tensor:
    shape = (2, width // 2) if not to_halves else (width // 2, 2)
    heads = y.unflatten(-1, (-1, *shape))
    return heads.transpose(-1, -2).reshape(y.shape)


def _of_tables(
    tables: Sequence[Tensor],
    new: Callable[[Tensor], Tensor],
    words: str,
    line: str,
    path: str,
    turn: int,
) -> PartChange:
    @contextmanager
    def around() -> Iterator[None]:
        before = [t.clone() for t in tables]
        try:
            for table in tables:
                table.copy_(new(table))
            yield
        finally:
            for table, old in zip(tables, before, strict=True):
                table.copy_(old)

    return PartChange(words, line, (path,), around, turn=turn)


def _exchanged(modules: Mapping[str, nn.Module], blocks: Sequence[str]) -> Iterator[PartChange]:
    """Yield exchanges of two blocks, and of two equally shaped layers in every block.

    Exchanges that make the weights change more smoothly over depth come first.
    """
    ranked = pairs_by_jumps(modules, blocks)
    hopeful = [pair for pair, removed in ranked[:MOST_HOPEFUL] if removed >= REMOVED]
    rest = sorted(
        (pair for pair, _ in ranked if pair not in hopeful),
        key=lambda pair: blocks.index(pair[1]) - blocks.index(pair[0]),
    )
    if len(blocks) > MOST_EXCHANGED:
        rest = [pair for pair in rest if pair in {*itertools.pairwise(blocks)}]
    for pair in (*hopeful, *rest):
        yield replace(
            _orders(modules, [pair]),
            near=partial(_further, modules, pair, [*itertools.pairwise(blocks)]),
            alone=pair in hopeful,
        )
    inner = {b: _layers(modules[b]) for b in blocks}
    first = inner.get(blocks[0], {}) if blocks else {}
    for (x, one), (y, two) in itertools.combinations(first.items(), 2):
        if one.shape == two.shape and x.rpartition(".")[0] == y.rpartition(".")[0]:
            pairs = [(f"{b}.{x}", f"{b}.{y}") for b in blocks if {x, y} <= inner[b].keys()]
            change = _places_of(modules, pairs, f"{x} and {y} exchanged in every block")
            yield replace(change, turn=2)


def _further(
    modules: Mapping[str, nn.Module], first: tuple[str, str], pairs: Sequence[tuple[str, str]]
) -> list[PartChange]:
    """Return the exchange of two blocks followed by another exchange."""
    return [_orders(modules, [first, pair]) for pair in pairs if pair != first]


def _orders(modules: Mapping[str, nn.Module], pairs: Sequence[tuple[str, str]]) -> PartChange:
    words = ", then ".join(f"{a} and {b}" for a, b in pairs)
    return _places_of(modules, pairs, f"{words} exchanged")


def _layers(block: nn.Module) -> dict[str, Tensor]:
    return {
        n: w for n, m in block.named_modules() if _is_linear(m) and (w := _weight(m)) is not None
    }


def _places_of(
    modules: Mapping[str, nn.Module], pairs: Sequence[tuple[str, str]], words: str
) -> PartChange:
    def slot(path: str) -> tuple[dict[str, nn.Module | None], str]:
        parent, _, last = path.rpartition(".")
        return modules[parent]._modules, last

    @contextmanager
    def around() -> Iterator[None]:
        try:
            _turn()
            yield
        finally:
            _turn(-1)

    def _turn(way: int = 1) -> None:
        for a, b in pairs[::way]:
            (one, x), (other, y) = slot(a), slot(b)
            one[x], other[y] = other[y], one[x]

    named = tuple(itertools.chain.from_iterable(pairs))
    return PartChange(words, f"load the weights again with {words}", named, around)


def _moved(
    ran: Mapping[str, nn.Module], roles: Mapping[str, tuple[str, ...]]
) -> Iterator[PartChange]:
    """Yield outputs of attention's linear layers, shifted by some positions."""
    for role, paths in roles.items():
        parent = role.rpartition(".")[0].lower()
        if not ("attn" in parent or "attention" in parent):
            continue
        if not all(_is_linear(ran[p]) for p in paths):
            continue
        for step in SHIFTS:
            side = "earlier" if step < 0 else "later"
            yield PartChange(
                f"the output of {role} {abs(step)} positions {side}",
                f"y = y.roll({step}, 1), where y is the output of {role}",
                paths,
                partial(hooked, [ran[p] for p in paths], lambda _, y, s=step: _rolled(y, s)),
            )


def _rolled(y: Tensor, step: int) -> Tensor:
    return y.roll(step, 1) if y.ndim == 3 else y


def grid(low: float, high: float, n: int) -> list[float]:
    """Return ``n`` factors from ``low`` to ``high``, evenly spaced on a log scale."""
    return [math.exp(x) for x in torch.linspace(math.log(low), math.log(high), n).tolist()]
