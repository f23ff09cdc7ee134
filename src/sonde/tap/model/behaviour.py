"""States of a few drawn inputs: what a model does, where its parts do not say it.

The inputs have the shapes, types and ranges of the first example and none of its values. Two
models behave alike if the states of most rows agree within the rounding of the coarser type.
"""

import inspect
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.autocast import without_autocast
from sonde.core.inputs import InputBatch
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find, leaves
from sonde.tap.hooks.session import Session, open_sessions
from sonde.tap.model.placement import Place, placement
from sonde.tap.model.seeding import seed_everything, untouched

ROWS, TOKENS, SITES, DIRECTIONS, WIDEST = 8, 16, 6, 4, 2**16
MOST_NUMBERS = 2**21
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 1e-2}
COARSEST = 5e-2
"""Relative distance of states up to which two models behave alike; COARSEST for other types."""
_log = logging.getLogger("sonde")

Behaviour = dict[str, Any]


def behaviour_of(
    module: nn.Module, batch: InputBatch, place: Place, paths: Sequence[str], most: int = ROWS
) -> Behaviour | None:
    """Return drawn inputs and the model's states of them, or None if there are no fixed states.

    There are none if the model does not run on drawn inputs, or gives other states the second time.

    Parameters
    ----------
    module : nn.Module
    batch : InputBatch
        An example; its shapes, types and ranges are kept.
    place : Place
        Where the model takes its inputs, and in which types.
    paths : sequence of str
        Modules whose outputs are compared, beside the output of the model.
    most : int, default=8
        Most rows that the model has room for at once; further rows are not drawn.
    """
    room = min(ROWS, most)
    behaviour: Behaviour = {
        "inputs": None if batch.packed else _described(batch, room),
        "types": {name: _name(t) for name, t in place.types.items()},
        "dtype": dtype_of(module),
        "sites": _spread(list(dict.fromkeys(paths))),
    }
    if behaviour["inputs"] is None:
        return None
    try:
        behaviour["states"] = states_of(module, behaviour)
        again = states_of(module, behaviour, seed=1)
    except Exception as error:  # whatever a model raises on inputs that it is not made for
        _log.debug("the model does not run on drawn inputs: %s", error)
        return None
    distances = distances_of(behaviour["states"], again)
    fixed = behaviour["states"] and all(d <= tolerance(behaviour) for d in distances.values())
    return behaviour if fixed else None


def states_of(
    module: nn.Module, known: Mapping[str, Any], seed: int = 0
) -> dict[str, list[list[float]]]:
    """Return a module's states of the inputs of a behaviour: size and projections of each row.

    Parameters
    ----------
    module : nn.Module
        Module that is run.
    known : mapping
        What ``behaviour_of`` returned.
    seed : int, default=0
        Seed of the random numbers that the model itself may draw.
    """
    names = ModuleNames(module).modules
    device, dtype = placement(module)
    args, kwargs = _drawn(known["inputs"])
    types = {name: getattr(torch, t) for name, t in known["types"].items()}
    if dtype is not None and _name(dtype) != known["dtype"]:
        types = dict.fromkeys([*map(str, range(len(args))), *kwargs], dtype)
    args, kwargs = _by_name(module, *Place(device, types).call(args, kwargs))
    states: dict[str, list[list[float]]] = {}
    sites = [path for path in known["sites"] if path in names]
    watched = [(names[path], partial(_keep, states, path)) for path in sites]
    session = Session(module, outputs=watched, parts="skip")
    with untouched(module), without_autocast(device), session:  # whoever asks
        seed_everything(module, seed)
        output = session.run(args, kwargs)
    for key, x in leaves(output).items():
        if x.is_floating_point() and len(states) <= SITES + 1:
            _keep(states, f"output {key}".rstrip(), x)
    return states


def is_watched(module: nn.Module) -> bool:
    """Return whether a session of sonde, such as an edit, is open on a part of a module.

    Parameters
    ----------
    module : Module
        Module to ask about.
    """
    own = {id(part) for part in module.modules()}
    return any(id(session.root) in own for session in open_sessions())


def dtype_of(module: nn.Module) -> str | None:
    """Return the name of the type of a module's first float parameter.

    Parameters
    ----------
    module : Module
        Module whose parameters are looked at.
    """
    dtype = placement(module)[1]
    return None if dtype is None else _name(dtype)


def tolerance(*known: Mapping[str, Any]) -> float:
    """Return the relative distance up to which the states of models of these types agree.

    Parameters
    ----------
    *known
        Facts about the model that a file contains.
    """
    return max(TOLERANCE.get(one["dtype"] or "float32", COARSEST) for one in known)


def distances_of(
    here: Mapping[str, Sequence[Sequence[float]]], known: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, float]:
    """Return the median relative distance of rows at each site that both sides have.

    Parameters
    ----------
    here : Mapping[str, Sequence[Sequence[float]]]
        States of this model, by site.
    known : Mapping[str, Sequence[Sequence[float]]]
        States that a file contains, by site.
    """
    distances: dict[str, float] = {}
    for name in here.keys() & known.keys():
        a, b = (torch.tensor(x[name], dtype=torch.float64) for x in (here, known))
        if a.shape != b.shape:
            distances[name] = math.inf
            continue
        size = torch.maximum(a[:, 0], b[:, 0]).clamp(min=1e-30)
        apart = (a - b).square().mean(1).sqrt() / size
        distances[name] = float(apart.nan_to_num(math.inf).median())
    return dict(sorted(distances.items()))


def _by_name(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments; a lone one by position if a forward gives it another name."""
    parameters = inspect.signature(module.forward).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if args or len(kwargs) != 1 or free or parameters.keys() >= kwargs.keys():
        return args, kwargs
    return tuple(kwargs.values()), {}


def _spread(paths: list[str]) -> list[str]:
    """Return at most ``SITES`` of the paths, the first and the last among them."""
    if len(paths) <= SITES:
        return paths
    step = (len(paths) - 1) / (SITES - 1)
    return [paths[round(i * step)] for i in range(SITES)]


def _keep(found: dict[str, list[list[float]]], path: str, output: Any) -> None:
    """Record the size and a few projections of the first rows that a module gives.

    A model may run its rows in parts, one after the other: further calls are recorded until there
    are as many rows as are drawn at most.
    """
    x, earlier = find(output, None), found.get(path, [])
    if len(earlier) >= ROWS or x is None or x.is_nested or x.numel() == 0:
        return
    rows = x.detach().reshape(len(x), -1) if x.ndim else x.detach().reshape(1, 1)
    step = -(-rows.shape[1] // WIDEST)
    rows = rows[:, ::step].cpu().double()
    draw = torch.Generator().manual_seed(0)
    onto = torch.randn(rows.shape[1], DIRECTIONS, generator=draw, dtype=torch.float64)
    size = rows.square().mean(1, keepdim=True).sqrt()
    both = torch.cat([size, rows @ onto / math.sqrt(rows.shape[1])], 1)
    more = [[float(f"{v:.7g}") for v in row] for row in both.tolist()]
    found[path] = [*earlier, *more[: ROWS - len(earlier)]] if earlier else more


def _described(batch: InputBatch, room: int) -> dict[str, Any] | None:
    """Return how to draw inputs like a batch's, as JSON; None if it holds other things."""
    n = len(batch.ids)
    longest = [x.shape[1] for x in _tensors(batch) if x.ndim == 2 and not x.is_floating_point()]
    length = max(longest, default=0)
    try:
        return {
            "args": [_said(x, n, length, room) for x in batch.args],
            "kwargs": {name: _said(x, n, length, room) for name, x in batch.kwargs.items()},
        }
    except TypeError:
        return None


def _tensors(batch: InputBatch) -> Iterable[Tensor]:
    return [x for x in (*batch.args, *batch.kwargs.values()) if isinstance(x, Tensor)]


def _said(value: Any, n: int, length: int, room: int) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, tuple | list):
        return {
            "several": [_said(x, n, length, room) for x in value],
            "tuple": isinstance(value, tuple),
        }
    if isinstance(value, Mapping):
        return {"named": {str(k): _said(x, n, length, room) for k, x in value.items()}}
    if not isinstance(value, Tensor) or value.is_nested or value.layout is not torch.strided:
        raise TypeError(type(value).__name__)
    x = value.detach()
    if x.ndim > 1 and length and x.shape[1] == length:
        x = x[:, :TOKENS]
    described = {"shape": list(x.shape), "dtype": _name(x.dtype)}
    if x.ndim and len(x) == n and n:
        rows = max(1, min(room, MOST_NUMBERS // max(x[0].numel(), 1)))
        described["shape"], x = [rows, *x.shape[1:]], x[:1]
    if not x.numel():
        return described | {"constant": 0}
    if x.is_complex():
        raise TypeError("complex numbers")
    if x.is_floating_point():
        finite = x.double()[x.isfinite()]
        if not len(finite):
            raise TypeError("no finite numbers")
        spread = float(finite.std()) if len(finite) > 1 else 1.0
        low, high = float(finite.min()), float(finite.max())
        if low == high and x.numel() > 1:
            return described | {"constant": low}
        return (
            described
            | {"mean": _short(finite.mean()), "std": _short(spread)}
            | ({"low": _short(low), "high": _short(high)} if x.numel() > 1 else {})
        )
    low, high = int(x.min()), int(x.max())
    if low == high:
        return described | {"constant": low}
    if x.ndim > 1 and bool((x[..., 1:] >= x[..., :-1]).all()) and x.dtype != torch.bool:
        return described | {"row": x[0].tolist()}  # positions
    return described | {"low": low, "high": high}


def _short(x: Any) -> float:
    return float(f"{float(x):.4g}")


def _drawn(said: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    args = tuple(_made(x, draw) for x in said["args"])
    return args, {name: _made(x, draw) for name, x in said["kwargs"].items()}


def _made(said: Mapping[str, Any], draw: torch.Generator) -> Any:
    if "value" in said:
        return said["value"]
    if "several" in said:
        several = [_made(x, draw) for x in said["several"]]
        return tuple(several) if said["tuple"] else several
    if "named" in said:
        return {name: _made(x, draw) for name, x in said["named"].items()}
    shape, dtype = said["shape"], getattr(torch, said["dtype"])
    if "constant" in said:
        return torch.full(shape, said["constant"], dtype=dtype)
    if "row" in said:
        return torch.tensor(said["row"], dtype=dtype).expand(shape).clone()
    if "std" in said:
        x = torch.randn(shape, generator=draw, dtype=torch.float64) * said["std"] + said["mean"]
        return (x.clamp(said["low"], said["high"]) if "low" in said else x).to(dtype)
    return torch.randint(said["low"], said["high"] + 1, shape, generator=draw).to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
