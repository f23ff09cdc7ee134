"""The truth: hooks that clone, one example at a time, and numpy in float64 for what follows."""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tools.fuzz.drawing import Drawn
from tools.fuzz.writing import MERGED, POS, ROW, Spot

Rows = list[np.ndarray]
"""The rows of each example, (row, dim)."""
NEIGHBOURS, SHRINKAGE = 3, 0.1


def imported(source: str, name: str, folder: Path) -> ModuleType:
    """Return a module of source that was written to a folder, which workers can import too."""
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Plain:
    """What plain hooks saw: of every spot a copy for each example.

    Parameters
    ----------
    drawn : Drawn
    values : dict of Spot to list of array
        The tensor at a spot in the forward of each example alone, without the axis of examples.
    reals : list of array or None
        Which positions of each example are real.
    noise : dict of Spot to float
        By how much the numbers of one forward of all differ from those of one at a time.
    """

    drawn: Drawn
    values: dict[Spot, list[np.ndarray]]
    reals: list[np.ndarray] | None
    noise: dict[Spot, float]

    def rows(self, spot: Spot, reducer: str) -> Iterator[Rows]:
        """Yield what may be called the rows of a spot by a reducer, the first best."""
        for feature in spot.features:
            places = [i for i, axis in enumerate(spot.axes) if i != feature and axis.word != ROW]
            yield self._rows(spot, reducer, feature, places)
            if len(places) > 1:
                for place in places:
                    yield self._rows(spot, reducer, feature, [place])

    def tolerance(self, spot: Spot) -> float:
        """Return by how much numbers of this size may differ for rounding alone."""
        scale, floor = _largest(self.values[spot]), 2e-7 * max(map(_largest, self.values.values()))
        of_type = 2e-2 if "bfloat16" in self.drawn.source else 1e-5
        if self.drawn.elementwise:
            of_type = 4e-7
        return of_type * scale + floor + 4 * self.noise.get(spot, 0.0)

    def _rows(self, spot: Spot, reducer: str, feature: int, places: Sequence[int]) -> Rows:
        found = []
        for i, value in enumerate(self.values[spot]):
            kept = [j for j, a in enumerate(spot.axes) if a.word != ROW]
            inner = [j for j in kept if j != feature and j not in places]
            order = [kept.index(j) for j in (*places, *inner, feature)]
            x = value.transpose(order)
            x = x.reshape(*x.shape[: len(places)], -1)
            table = x.reshape(-1, x.shape[-1])
            real = self._real(spot, i, places, x.shape[:-1])
            found.append(_reduced(table, real, reducer, spot))
        return found

    def _real(
        self, spot: Spot, i: int, places: Sequence[int], shape: tuple[int, ...]
    ) -> np.ndarray:
        real = np.ones(shape, dtype=bool)
        for at, place in enumerate(places):
            view = [1] * len(places)
            view[at] = -1
            if spot.axes[place].word == POS and self.reals is not None:
                real = real & self.reals[i].reshape(view)
        return real.reshape(-1)


def _largest(values: Sequence[np.ndarray]) -> float:
    return max((float(np.nanmax(np.abs(v), initial=0.0)) for v in values), default=0.0)


def _reduced(table: np.ndarray, real: np.ndarray, reducer: str, spot: Spot) -> np.ndarray:
    special = [s for axis in spot.axes for s in axis.special]
    patch = real.copy()
    patch[special] = False
    match reducer:
        case "mean":
            return table[patch].mean(0, keepdims=True)
        case "tokens":
            return table[real]
        case "patches":
            return table[patch]
        case "flat":
            return table.reshape(1, -1)
        case "last":
            return table[[np.flatnonzero(real)[-1]]]
        case "cls" if not special or special[0] == 0:
            return table[[np.flatnonzero(real)[0]]]
        case "cls" if len(special) == 1:
            return table[special]
    return np.empty((0, 0))


def look(drawn: Drawn, module: ModuleType) -> Plain:
    """Return what plain hooks see of a model."""
    model, items = module.model(), module.items()
    every = (*drawn.spots, drawn.logits)
    wanted: list[Spot] = list(dict.fromkeys(spot for spot in every if spot is not None))
    values: dict[Spot, list[np.ndarray]] = {spot: [] for spot in wanted}
    for item in items:
        for spot, x in _seen(model, module.call([item]), wanted).items():
            axis = [i for i, a in enumerate(spot.axes) if a.word == ROW]
            values[spot].append(_numbers(x.select(axis[0], 0) if axis else x))
    reals = None
    if drawn.masked:
        reals = [np.asarray(module.real(item)) for item in items]
    noise = {} if drawn.facts else _noise(model, module, items, values)
    return Plain(drawn, values, reals, noise)


def _noise(
    model: torch.nn.Module, module: ModuleType, items: list[Any], values: dict[Spot, Rows]
) -> dict[Spot, float]:
    try:
        together = _seen(model, module.call(items), list(values))
    except (RuntimeError, ValueError):  # examples of several lengths
        return {}
    noise = {}
    for spot, x in together.items():
        axis = next((i for i, a in enumerate(spot.axes) if a.word in (ROW, MERGED)), 0)
        parts = torch.tensor_split(x, len(items), dim=axis)
        gaps = [
            np.abs(_numbers(p).reshape(-1) - v.reshape(-1))
            for p, v in zip(parts, values[spot], strict=True)
        ]
        noise[spot] = float(np.nanmax(np.concatenate(gaps), initial=0.0))
    return noise


def _numbers(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy().copy()


def _seen(
    model: torch.nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], wanted: Sequence[Spot]
) -> dict[Spot, torch.Tensor]:
    """Return a copy of each wanted tensor of one forward, made the moment that it is there."""
    found: dict[Spot, torch.Tensor] = {}
    counts: dict[tuple[str, str], int] = {}
    spots: dict[tuple[str, str], list[Spot]] = {}
    for spot in wanted:
        spots.setdefault((spot.path, spot.port), []).append(spot)

    def take(place: tuple[str, str], value: Any) -> None:
        count = counts.get(place, 0)
        counts[place] = count + 1
        for spot in spots[place]:
            if spot.call == count:
                found[spot] = _picked(value, spot.keys).clone()

    def after(place: tuple[str, str]) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            take(place, output)

        return hook

    def before(place: tuple[str, str]) -> Callable[..., None]:
        def hook(_module: Any, args: Any) -> None:
            take(place, args[0])

        return hook

    handles = []
    for path, port in spots:
        part = model.get_submodule(path)
        hook = after((path, port)) if port == "out" else before((path, port))
        register = part.register_forward_hook if port == "out" else part.register_forward_pre_hook
        handles.append(register(hook))
    try:
        with torch.no_grad():
            model(*call[0], **call[1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _picked(value: Any, keys: Sequence[str | int]) -> torch.Tensor:
    for key in keys:
        named = isinstance(key, str) and key.startswith(".")
        value = getattr(value, str(key)[1:]) if named else value[key]
    return value


def mahalanobis(rows: np.ndarray) -> np.ndarray:
    """Return the squared distance of each row to the mean, by the shrunk covariance."""
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / len(rows)
    dim = len(covariance)
    target = np.eye(dim) * np.trace(covariance) / dim
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * target
    return np.einsum("ij,ij->i", centred, np.linalg.solve(shrunk, centred.T).T)


def knn(rows: np.ndarray) -> np.ndarray:
    """Return the distance of each row to its nearest but ``NEIGHBOURS - 1``, all of length 1."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    gaps = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    return np.sort(gaps, axis=1)[:, min(NEIGHBOURS, len(rows)) - 1]


def msp(logits: np.ndarray) -> np.ndarray:
    """Return the negative of the largest softmax probability."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return -raised.max(1) / raised.sum(1)
