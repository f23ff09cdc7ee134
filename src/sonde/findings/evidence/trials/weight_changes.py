"""Trial changes of single modules: settings, exchanged or turned weights, sizes and residuals.

Weights that were loaded into the wrong place or in another layout, and a flag that the training
code set: each change undoes one such mistake at one module. The model is as it was afterwards.
"""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from sonde.findings.evidence.trials.part_changes import PartChange, hooked, with_values

FACTORS: Final = (-1.0, 0.125, 0.33, 3.0, 8.0)
MOST_WEIGHTS: Final = 2_000_000
"""Entries of a weight that is changed in place: larger ones take too long to copy."""
MOST_OF_A_KIND: Final = 12
"""Modules of a class that are changed one by one; more are changed together first."""
MOST_PAIRS: Final = 96


def weight_changes(ran: Mapping[str, nn.Module]) -> list[PartChange]:
    """Return the changes of single modules to try, from simple to complex kinds.

    Parameters
    ----------
    ran : mapping of str to nn.Module
        Modules that ran once, by path.
    """
    small = {n: m for n, m in ran.items() if _matrices(m) and _size(m) <= MOST_WEIGHTS}
    changes = [*_settings(ran), *_statistics(ran), *_residuals(ran)]
    changes += _gates(small)
    changes += itertools.islice(_exchanges(small), MOST_PAIRS)
    changes += _turned(small)
    for path, module in small.items():
        changes += [_resized(path, module, f) for f in FACTORS]
    return changes


def _matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    return {
        n: p
        for n, p in module.named_parameters(recurse=False)
        if p.ndim >= 2 and p.is_floating_point() and not p.is_meta
    }


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


@contextmanager
def _with_weights(modules: Sequence[nn.Module], new: Callable[[], object]) -> Iterator[None]:
    """Change the weights of modules in place by ``new``, and put them back."""
    held = [p for m in modules for p in m.parameters(recurse=False)]
    before = [p.detach().clone() for p in held]
    try:
        with torch.no_grad():
            new()
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(held, before, strict=True):
                p.copy_(old)


def _in_place(
    words: str,
    line: str,
    paths: Sequence[str],
    modules: Sequence[nn.Module],
    new: Callable[[], object],
) -> PartChange:
    around: Callable[[], AbstractContextManager[Any]] = partial(_with_weights, modules, new)
    return PartChange(words, line, tuple(paths), around)


def _at(path: str) -> str:
    """Return code for a module of ``model``."""
    parts = path.split(".")
    if all(part.isidentifier() for part in parts):
        return f"model.{path}"
    return f"model.get_submodule({path!r})"


def _resized(path: str, module: nn.Module, factor: float) -> PartChange:
    held = _matrices(module)

    def new() -> None:
        for p in held.values():
            p.mul_(factor)

    line = "; ".join(f"{_at(path)}.{n}.data *= {factor:g}" for n in held)
    return _in_place(f"the weights of {path} times {factor:g}", line, (path,), (module,), new)


def _turned(small: Mapping[str, nn.Module]) -> Iterator[PartChange]:
    """Yield transposes of square matrices, as of a library that multiplies from the other side."""
    for path, module in small.items():
        for name, p in _matrices(module).items():
            if p.ndim == 2 and p.shape[0] == p.shape[1] and not isinstance(module, nn.RNNBase):
                line = f"{_at(path)}.{name}.data = {_at(path)}.{name}.data.T.clone()"
                yield _in_place(
                    f"{path}.{name} transposed", line, (path,), (module,),
                    lambda p=p: p.copy_(p.T.clone()),
                )  # fmt: skip


def _gates(small: Mapping[str, nn.Module]) -> Iterator[PartChange]:
    """Yield other orders of the gates of recurrent layers, as of another library."""
    for path, module in small.items():
        n = {nn.LSTM: 4, nn.GRU: 3}.get(type(module), 0)
        for order in itertools.permutations(range(n)) if n else ():
            if order == tuple(range(n)):
                continue
            held = list(module.parameters(recurse=False))

            def new(held: Sequence[Tensor] = held, order: Sequence[int] = order) -> None:
                for p in held:
                    p.copy_(torch.cat([p.chunk(len(order))[i] for i in order]).clone())

            line = (
                f"for p in {_at(path)}.parameters(): "
                f"p.data = torch.cat([p.data.chunk({n})[i] for i in {order}])"
            )
            words = f"the gates of {path} in the order {', '.join(map(str, order))}"
            yield _in_place(words, line, (path,), (module,), new)


def _exchanges(small: Mapping[str, nn.Module]) -> Iterator[PartChange]:
    """Yield exchanges of the weights of two modules of one class and shape, near ones first."""
    kinds: dict[tuple[object, ...], list[str]] = {}
    for path, module in small.items():
        shapes = tuple((n, tuple(p.shape)) for n, p in module.named_parameters(recurse=False))
        kinds.setdefault((type(module), shapes), []).append(path)
    pairs = [(j - i, paths[i], paths[j]) for paths in kinds.values()
             for i, j in itertools.combinations(range(len(paths)), 2)]  # fmt: skip
    for _, a, b in sorted(pairs, key=lambda pair: pair[0]):
        one, two = small[a], small[b]

        def new(one: nn.Module = one, two: nn.Module = two) -> None:
            for p, q in zip(one.parameters(recurse=False), two.parameters(recurse=False),
                            strict=True):  # fmt: skip
                kept = p.clone()
                p.copy_(q)
                q.copy_(kept)

        line = (
            f"a, b = {_at(a)}, {_at(b)}; kept = {{k: x.clone() for k, x in "
            "a.state_dict().items()}; a.load_state_dict(b.state_dict()); b.load_state_dict(kept)"
        )
        yield _in_place(f"the weights of {a} and {b} exchanged", line, (a, b), (one, two), new)


def _residuals(ran: Mapping[str, nn.Module]) -> Iterator[PartChange]:
    """Yield modules with their input added to their output, and with their input taken off."""
    for path, module in ran.items():
        if not _matrices(module) and next(module.children(), None) is None:
            continue
        for sign, words in ((1, "added to"), (-1, "taken off")):
            yield PartChange(
                f"the input of {path} {words} its output",
                f"y = y {'+' if sign > 0 else '-'} x, where x is the input and y the output of "
                f"{path}",
                (path,),
                partial(hooked, [module], partial(_plus, sign)),
            )


def _plus(sign: int, x: Any, y: Tensor) -> Tensor:
    return y + sign * x if isinstance(x, Tensor) and x.shape == y.shape else y


def _statistics(ran: Mapping[str, nn.Module]) -> Iterator[PartChange]:
    """Yield modules that standardise by stored numbers with the numbers of these rows."""
    for path, module in ran.items():
        buffers = [b for b in module.buffers(recurse=False) if b.is_floating_point()]
        if len(buffers) != 2 or buffers[0].shape != buffers[1].shape:
            continue
        if next(module.parameters(), None) is None and next(module.children(), None) is None:
            axes = _other_axes(buffers[0])
            over = f"{axes or '0'}, keepdim=True"
            yield PartChange(
                f"the outputs of {path} at mean 0 and variance 1",
                f"y = (y - y.mean({over})) / y.std({over}), where y is the output of {path}",
                (path,),
                partial(hooked, [module], partial(_standardised, axes or (0,))),
            )


def _other_axes(buffer: Tensor) -> tuple[int, ...]:
    """Return the axes over which numbers of a buffer were computed; empty if it has one axis."""
    if buffer.ndim < 2:
        return ()
    return tuple(axis for axis, n in enumerate(buffer.shape) if n == 1)


def _standardised(axes: tuple[int, ...], _: Any, y: Tensor) -> Tensor:
    spread = y.std(axes, keepdim=True).clamp(min=1e-12)
    return (y - y.mean(axes, keepdim=True)) / spread


def _settings(ran: Mapping[str, nn.Module]) -> Iterator[PartChange]:
    """Yield other values of flags and named options that a module's code reads."""
    kinds: dict[tuple[type, str, object, object], list[str]] = {}
    for path, module in ran.items():
        for name, value, new in _options(module):
            kinds.setdefault((type(module), name, value, new), []).append(path)
    for (_, name, value, new), paths in kinds.items():
        one_by_one = [(path,) for path in paths] if len(paths) <= MOST_OF_A_KIND else []
        together = [tuple(paths)] if len(paths) > 1 else []
        for some in (*together, *one_by_one):
            where = some[0] if len(some) == 1 else f"{some[0]} and {len(some) - 1} more"
            owners = [(ran[path], name) for path in some]
            yield PartChange(
                f"{name} {new!r} instead of {value!r} at {where}",
                "; ".join(f"{_at(path)}.{name} = {new!r}" for path in some[:MOST_OF_A_KIND]),
                some,
                partial(with_values, owners, [new] * len(owners)),
            )


def _options(module: nn.Module) -> Iterator[tuple[str, object, object]]:
    """Yield each option of a module that its code reads: name, value and another value."""
    options = _read_options(type(module))
    for name, value in vars(module).items():
        if name not in options or name == "training" or name.startswith("_"):
            continue
        if isinstance(value, bool):
            yield name, value, not value
        elif isinstance(value, str):
            yield from ((name, value, new) for new in options[name] if new != value)


@lru_cache(512)
def _read_options(kind: type) -> dict[str, tuple[str, ...]]:
    """Return the attributes that a class reads as ``self.name``, with the texts they may equal."""
    compared: dict[str, dict[str, None]] = {}
    named = {name: dict.fromkeys(texts) for name, texts in _listed_options(kind).items()}
    for cls in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        except (OSError, TypeError, SyntaxError):  # e.g. defined in a session
            continue
        for node in ast.walk(tree):
            if _is_of_self(node):
                compared.setdefault(node.attr, {})  # type: ignore[attr-defined]
            if isinstance(node, ast.Compare) and _is_of_self(node.left):
                texts = compared.setdefault(node.left.attr, {})  # type: ignore[attr-defined]
                texts |= dict.fromkeys(_texts(node.comparators))
    return {name: tuple(texts | named.get(name, {})) for name, texts in compared.items()}


def _listed_options(kind: type) -> dict[str, tuple[str, ...]]:
    """Return the texts that the constructor's arguments may equal, as their types say."""
    try:
        hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}
    return {
        name: tuple(one for one in get_args(hint) if isinstance(one, str))
        for name, hint in hints.items()
        if get_origin(hint) is Literal
    }


def _is_of_self(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def _texts(nodes: Sequence[ast.AST]) -> Iterator[str]:
    for node in (n for some in nodes for n in ast.walk(some)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
