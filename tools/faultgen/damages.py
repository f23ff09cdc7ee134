"""Changes of targets, of the weights of modules, and of what a forward does."""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tools.faultgen.parts import (
    ACTIVATIONS,
    Attention,
    Block,
    Drop,
    Flat,
    Pool,
    Standardise,
)
from tools.faultgen.tasks import PAD_LABEL
from tools.faultgen.worlds import World
from torch import Tensor, nn

Labels = tuple[str, ...]
CLASSES, NUMBERS = ("classes", "choice", "tokens", "map"), ("number", "numbers")
NetChange = Callable[[nn.Module], nn.Module]
Drawn = Callable[[random.Random], NetChange]


@dataclass(frozen=True)
class TargetChange:
    """A change of targets, for some kinds of tasks."""

    name: str
    kinds: Labels
    make: Callable[[random.Random, World], Callable[[Tensor, torch.Generator], Tensor]]


def _renumbered(draw: random.Random, world: World) -> Any:
    n = world.task.n_out
    order = list(range(n))
    if draw.random() < 0.5 or n == 2:
        i, j = draw.sample(order, 2)
        order[i], order[j] = j, i
    else:
        order = order[1:] + order[:1]
    return lambda y, _: torch.where(y == PAD_LABEL, y, torch.tensor(order)[y.clamp(min=0)])


def _mislabelled(draw: random.Random, world: World) -> Any:
    share, n = draw.uniform(0.15, 0.4), world.task.n_out

    def change(y: Tensor, g: torch.Generator) -> Tensor:
        wrong = torch.rand(y.shape, generator=g) < share
        other = (y + torch.randint(1, n, y.shape, generator=g)) % n
        return torch.where(wrong & (y != PAD_LABEL), other, y)

    return change


def _scaled(draw: random.Random, _: World) -> Any:
    factor = draw.choice((0.01, 0.1, 0.4536, 2.2046, 10.0, 100.0, 1000.0, -1.0))
    return lambda y, _: y * factor


def _moved(draw: random.Random, world: World) -> Any:
    more = draw.choice((-1, 1)) * draw.uniform(0.5, 3) * float(world.train.target.std())
    return lambda y, _: y + more


def _shifted(draw: random.Random, _: World) -> Any:
    by = draw.choice((-3, -2, -1, 1, 2, 3))
    return lambda y, _: y.roll(by, 0)


def _logarithm(_: random.Random, world: World) -> Any:
    least = float(world.train.target.min())
    return lambda y, _: (y - min(0.0, least)).clamp(min=0).log1p()


def _other_rows(_: random.Random, __: World) -> Any:
    return lambda y, g: y[torch.randperm(len(y), generator=g)]


def _exchanged(draw: random.Random, world: World) -> Any:
    n = world.train.target.shape[1]
    i, j = draw.sample(range(n), 2) if n > 1 else (0, 0)
    order = list(range(n))
    order[i], order[j] = j, i
    return lambda y, _: y[:, torch.tensor(order)]


TARGETS = (
    TargetChange("order of classes", CLASSES, _renumbered),
    TargetChange("mislabelled", CLASSES, _mislabelled),
    TargetChange("scale", NUMBERS, _scaled),
    TargetChange("offset", NUMBERS, _moved),
    TargetChange("logarithm", NUMBERS, _logarithm),
    TargetChange("shift by rows", (*CLASSES, *NUMBERS), _shifted),
    TargetChange("other rows", (*CLASSES, *NUMBERS), _other_rows),
    TargetChange("exchange", ("numbers",), _exchanged),
)


def _at(path: str, change: Callable[[nn.Module, nn.Module], None]) -> NetChange:
    """Return a change of the module at `path`, given the whole net too."""

    def on_net(net: nn.Module) -> nn.Module:
        with torch.no_grad():
            change(net.get_submodule(path), net)
        return net

    return on_net


def _drawn(
    path: str,
    change: Callable[[Any, nn.Module, Any], None],
    strength: Callable[[random.Random], Any] = lambda _: None,
) -> Drawn:
    """Return what draws the strength of a change of a module, given module, net and strength."""

    def make(draw: random.Random) -> NetChange:
        value = strength(draw)
        return _at(path, lambda module, net: change(module, net, value))

    return make


def _seed(draw: random.Random) -> int:
    return draw.randrange(10**6)


def _weighted(world: World) -> dict[str, nn.Module]:
    found = {}
    for name, module in world.net.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if name and any(p.ndim >= 2 and p.numel() >= 4 for p in own.values()):
            found[name] = module
    return found


def _matrices(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters(recurse=False) if p.ndim >= 2]


def drawn_anew(world: World) -> Iterator[Drawn]:
    """Yield weights of a module that were never loaded: drawn as before training."""

    def anew(module: nn.Module, _: nn.Module, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for p in _matrices(module):
            p.copy_(torch.randn(p.shape, generator=g) * p.std())

    for path in _weighted(world):
        yield _drawn(path, anew, _seed)


def early(world: World) -> Iterator[Drawn]:
    """Yield modules that were frozen by mistake: with weights of early in the training."""

    def frozen(module: nn.Module, _: nn.Module, path: str) -> None:
        for name, p in module.named_parameters(recurse=False):
            p.copy_(world.early[f"{path}.{name}"])

    for path in _weighted(world):
        yield _drawn(path, frozen, lambda _, p=path: p)


def _pairs(world: World) -> Iterator[tuple[str, str]]:
    paths = _weighted(world)
    shapes = {n: [p.shape for p in m.parameters(recurse=False)] for n, m in paths.items()}
    names = list(paths)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if shapes[a] == shapes[b] and type(paths[a]) is type(paths[b]):
                yield a, b


def exchanged(world: World) -> Iterator[Drawn]:
    """Yield exchanges of the weights of two modules of one shape."""

    def exchange(a: nn.Module, net: nn.Module, path: str) -> None:
        b = net.get_submodule(path)
        for p, q in zip(a.parameters(recurse=False), b.parameters(recurse=False), strict=True):
            kept = p.clone()
            p.copy_(q)
            q.copy_(kept)

    for a, b in _pairs(world):
        yield _drawn(a, exchange, lambda _, b=b: b)


def other_layer(world: World) -> Iterator[Drawn]:
    """Yield modules with the weights of another module of their shape."""

    def copied(a: nn.Module, net: nn.Module, path: str) -> None:
        b = net.get_submodule(path)
        for p, q in zip(a.parameters(recurse=False), b.parameters(recurse=False), strict=True):
            p.copy_(q)

    for a, b in _pairs(world):
        yield _drawn(a, copied, lambda _, b=b: b)


def transposed(world: World) -> Iterator[Drawn]:
    """Yield transposed square weights."""

    def transpose(module: Any, _: nn.Module, __: None) -> None:
        module.weight.copy_(module.weight.t().clone())

    for path, module in _weighted(world).items():
        if isinstance(module, nn.Linear) and module.in_features == module.out_features:
            yield _drawn(path, transpose)


def gate_order(world: World) -> Iterator[Drawn]:
    """Yield gates of an LSTM or GRU in the order of another library."""

    def swapped(module: nn.Module, _: nn.Module, order: tuple[int, ...]) -> None:
        for p in module.parameters(recurse=False):
            p.copy_(torch.cat([p.chunk(len(order))[i] for i in order]).clone())

    for path, module in world.net.named_modules():
        if isinstance(module, nn.LSTM | nn.GRU):
            order = (0, 2, 1, 3) if isinstance(module, nn.LSTM) else (1, 0, 2)
            yield _drawn(path, swapped, lambda _, o=order: o)


def stale_statistics(world: World) -> Iterator[Drawn]:
    """Yield running statistics of other data."""

    def stale(module: nn.Module, _: nn.Module, drawn: tuple[float, float]) -> None:
        factor, more = drawn
        if isinstance(module, Standardise):
            module.mean.add_(more * module.std)
            module.std.mul_(factor)
        else:
            mean, variance = (module.get_buffer(n) for n in ("running_mean", "running_var"))
            mean.add_(more * variance.sqrt())
            variance.mul_(factor)

    for path, module in world.net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | Standardise):
            yield _drawn(path, stale, lambda d: (d.choice((0.04, 0.25, 4, 25)), d.uniform(-2, 2)))


def rounded(world: World) -> Iterator[Drawn]:
    """Yield weights in very few levels."""

    def round_to(module: nn.Module, _: nn.Module, n: int) -> None:
        for p in _matrices(module):
            step = 2 * p.abs().max() / n
            p.copy_((p / step).round() * step)

    for path in _weighted(world):
        yield _drawn(path, round_to, lambda d: d.choice((2, 3, 4)))


def half_range(world: World) -> Iterator[Drawn]:
    """Yield weights whose large numbers were cut off."""

    def cut(module: nn.Module, _: nn.Module, q: float) -> None:
        for p in _matrices(module):
            most = float(p.abs().flatten().quantile(q))
            p.clamp_(-most, most)

    for path in _weighted(world):
        yield _drawn(path, cut, lambda d: d.choice((0.3, 0.5, 0.7)))


def rescaled(world: World) -> Iterator[Drawn]:
    """Yield weights times a factor, as by a scale of quantisation that was applied twice."""

    def scale(module: nn.Module, _: nn.Module, by: float) -> None:
        for p in _matrices(module):
            p.mul_(by)

    for path in _weighted(world):
        yield _drawn(path, scale, lambda d: d.choice((-1, 0.1, 0.3, 3.0, 8.0)))


def doubled_adapter(world: World) -> Iterator[Drawn]:
    """Yield adapters of rank 2 that were merged once too often."""

    def merged(module: nn.Module, _: nn.Module, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for p in _matrices(module):
            flat = p.flatten(1)
            a, b = (torch.randn(n, 2, generator=g) for n in flat.shape)
            more = (a @ b.T).reshape(p.shape)
            p.add_(1.5 * more * p.norm() / more.norm())

    for path in _weighted(world):
        yield _drawn(path, merged, _seed)


def _with_attribute(
    world: World, kind: type[nn.Module], name: str, values: Callable[[Any], list[Any]]
) -> Iterator[Drawn]:
    for path, module in world.net.named_modules():
        if isinstance(module, kind):
            for value in values(module):
                yield _drawn(path, lambda m, _, v: setattr(m, name, v), lambda _, v=value: v)


def pooling(world: World) -> Iterator[Drawn]:
    """Yield other poolings."""
    others = lambda m: [k for k in ("mean", "max", "first", "last") if k != m.kind]  # noqa: E731
    yield from _with_attribute(world, Pool, "kind", others)


def no_mask(world: World) -> Iterator[Drawn]:
    """Yield masks that are not used."""
    if any(s.role == "mask" for s in world.task.specs.values()):
        for kind in (Pool, Attention):
            yield from _with_attribute(world, kind, "uses_mask", lambda _: [False])


def flattening(world: World) -> Iterator[Drawn]:
    """Yield another order of flattening."""
    yield from _with_attribute(world, Flat, "channels_first", lambda _: [False])


def no_residual(world: World) -> Iterator[Drawn]:
    """Yield missing residual paths."""
    for kind in (Block, Attention):
        yield from _with_attribute(world, kind, "skip", lambda m: [False] if m.skip else [])


def dropout_on(world: World) -> Iterator[Drawn]:
    """Yield dropout that is on while the net answers, of half of the numbers."""

    def on(module: Any, _: nn.Module, __: None) -> None:
        module.always, module.p = True, 0.6

    for path, module in world.net.named_modules():
        if isinstance(module, Drop):
            yield _drawn(path, on)


def padding(world: World) -> Iterator[Drawn]:
    """Yield other paddings of convolutions."""
    modes = lambda m: ["circular", "reflect"] if m.padding != (0, 0) else []  # noqa: E731
    for kind in (nn.Conv1d, nn.Conv2d):
        yield from _with_attribute(world, kind, "padding_mode", modes)


def activation(world: World) -> Iterator[Drawn]:
    """Yield another activation at one module."""

    def other(net: nn.Module, path: str, kind: str) -> nn.Module:
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, ACTIVATIONS[kind]())
        return net

    for path, module in world.net.named_modules():
        if type(module).__name__ in ACTIVATIONS:
            for kind in ACTIVATIONS:
                if kind != type(module).__name__:
                    yield lambda _, p=path, k=kind: lambda net: other(net, p, k)


def no_norm(world: World) -> Iterator[Drawn]:
    """Yield missing norms."""

    def without(net: nn.Module, path: str) -> nn.Module:
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, nn.Identity())
        return net

    for path, module in world.net.named_modules():
        if "Norm" in type(module).__name__ or isinstance(module, Standardise):
            yield lambda _, p=path: lambda net: without(net, p)


MODULES: dict[str, Callable[[World], Iterator[Drawn]]] = {
    "drawn anew": drawn_anew,
    "frozen early": early,
    "exchanged": exchanged,
    "other layer": other_layer,
    "transposed": transposed,
    "gate order": gate_order,
    "stale statistics": stale_statistics,
    "rounded": rounded,
    "half range": half_range,
    "rescaled": rescaled,
    "doubled adapter": doubled_adapter,
    "pooling": pooling,
    "no mask": no_mask,
    "flattening": flattening,
    "no residual": no_residual,
    "dropout on": dropout_on,
    "padding": padding,
    "activation": activation,
    "no norm": no_norm,
}


def restored(damaged: nn.Module, healthy: nn.Module, paths: frozenset[str]) -> nn.Module:
    """Return a copy of a net with the healthy modules at some paths."""
    net = copy.deepcopy(damaged)
    for path in sorted(paths):
        parent, _, name = path.rpartition(".")
        if path and name in dict(net.get_submodule(parent).named_children()):
            setattr(net.get_submodule(parent), name, copy.deepcopy(healthy.get_submodule(path)))
    return net
