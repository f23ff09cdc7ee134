"""Second moments ``sum x x^T`` of layers' inputs, for methods that calibrate on them.

Layers that read one tensor share a matrix. States of shards are merged by addition and can be
saved. Rows of padding are left out.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress._tensors import names_of_tensors
from sonde.core.errors import InputError, SondeWarning, StateError
from sonde.core.finite import finite_rows
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.state import State
from sonde.core.wording import plural
from sonde.engine.progress import Bar
from sonde.files.state_file import read_one, write_one
from sonde.stats import Moments, MomentsState
from sonde.stats.moments import centre, gram
from sonde.stats.shrinkage import Shrinkage, oas_weight
from sonde.tap import (
    calls_of,
    difference_of_models,
    model_record,
    place_of,
    require_measured_on,
)
from sonde.tap.rows.padding import right_padded
from sonde.weights import as_model
from sonde.weights.live import require_in_memory
from sonde.weights.needs import MOST_LEFT_OUT

KEY, JOIN, GROUP = "layer_grams", "&", "#"


@final
@dataclass(frozen=True)
class LayerGrams(State):
    """Moments of the inputs of layers.

    Parameters
    ----------
    names : tuple of str
        For each state, the layers that read the rows, ``a&b``, and the group of a convolution.
    counts : tuple of int
        Rows of each; 0 for a layer that no row reached, whose inputs count alike.
    means : tuple of Float[Tensor, "dim"]
    scatters : tuple of Float[Tensor, "dim dim"]
        Sums of ``(x - mean)(x - mean)^T``.
    broken : int
        Rows that were left out because they are not finite, or too large to square.
    model : str
        Record of the model that the inputs were read at, as of ``sonde.tap.model_record``.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    means: tuple[Tensor, ...]
    scatters: tuple[Tensor, ...]
    broken: int
    model: str

    @property
    def states(self) -> dict[str, MomentsState]:
        """The moments by name."""
        parts = zip(self.names, self.counts, self.means, self.scatters, strict=True)
        return {name: MomentsState(n, mean, scatter) for name, n, mean, scatter in parts}

    @classmethod
    def of(cls, states: Mapping[str, MomentsState], broken: int, model: str) -> "LayerGrams":
        """Return the state of moments by name."""
        ordered = sorted(states.items())
        return cls(
            tuple(name for name, _ in ordered),
            tuple(state.n for _, state in ordered),
            tuple(state.mean for _, state in ordered),
            tuple(state.scatter for _, state in ordered),
            broken,
            model,
        )

    def of_layers(self, layers: Iterable[str], group: int = 0) -> MomentsState:
        """Return the moments of all rows that each layer reads.

        Raises
        ------
        StateError
            If the inputs of none of these layers were read.
        """
        wanted = set(layers)
        total: MomentsState | None = None
        for name, state in self.states.items():
            readers, _, part = name.partition(GROUP)
            if int(part) == group and wanted & set(readers.split(JOIN)):
                # a tensor that several of the layers read counts once for each
                for _ in range(len(wanted & set(readers.split(JOIN)))):
                    total = _both(total, state)
        if total is None:
            raise StateError(
                f"LayerGrams: expected rows of {' and '.join(sorted(wanted))}, got none. "
                "Compute them with layer_grams(model, inputs), for these layers."
            )
        return total

    def merge(self, other: "LayerGrams") -> "LayerGrams":
        """Return the merged moments of two sets of rows.

        Raises
        ------
        StateError
            If they were read at other weights.
        """
        apart = difference_of_models(self.model, other.model)
        if apart is not None:
            raise StateError(
                "LayerGrams.merge: expected inputs of layers of the same model, got layers of two "
                f"models: {apart}. Measure both on one model."
            )
        states = self.states
        for name, state in other.states.items():
            states[name] = _both(states.get(name), state)
        return LayerGrams.of(states, self.broken + other.broken, self.model)

    def save(self, path: Path | str) -> str:
        """Write the state to a ``.sonde`` file and return its id."""
        return write_one(path, KEY, self)

    @classmethod
    def load(cls, path: Path | str) -> "LayerGrams":
        """Return the state that ``save`` wrote."""
        return read_one(path, KEY, cls)


def layer_grams(
    model: Model | nn.Module,
    inputs: Inputs,
    *,
    layers: tuple[str, ...] | None = None,
    start: int = 0,
    stop: int | None = None,
    exact: bool = False,
    progress: bool = True,
) -> LayerGrams:
    """Return the moments of the inputs of layers over data, in one pass without gradients.

    The model runs in eval mode and is left as it was. Layers that read one tensor share one state.
    Each batch is multiplied in the type of its rows, float32 at least, and added up in float64. A
    layer that no row reaches is named in a warning, and all its inputs count alike: an expert that
    no token picked, or a layer whose weight another module reads.

    Parameters
    ----------
    model : Model or nn.Module
        Model that is run; it is not changed.
    inputs : Inputs
        Inputs that the model runs on.
    layers : tuple of str, optional
        Patterns of names; all linear layers by default, but those tied to an embedding.
    start, stop : int, optional
        Read these examples alone.
    exact : bool, default=False
        Multiply in float64: about twice as slow, for directions that rows hardly reach.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.

    Raises
    ------
    InputError
        If a layer that a pattern names reads no row, no layer reads one, or more than a quarter of
        the rows are not finite or too large to square.
    """
    live, moments = as_model(model), dict[str, MomentsState]()
    require_in_memory("layer_grams", live.module)
    names = names_of_tensors(live.module, layers)
    chosen = {one.module: one for one in weighted_layers("layer_grams", live, layers, beside=names)}
    end, broken = len(inputs) if stop is None else min(stop, len(inputs)), 0
    with Bar("inputs of layers", end - start, shown=progress) as bar:
        for batch in map(right_padded, inputs.batches(start, end)):
            place = place_of(live.module, batch)
            args, kwargs = place.call(batch.args, batch.kwargs)
            calls = calls_of(live.module, list(chosen), args, kwargs)
            broken += add_rows(moments, chosen, calls, batch, exact)
            bar.advance(len(batch))
    silent = silent_layers(moments, chosen.values())
    if layers is not None or len(silent) == len(chosen):
        require_rows(moments, chosen.values())
    report_broken("layer_grams", broken, sum(state.n for state in moments.values()))
    if silent:
        warnings.warn(
            "layer_grams: no row that is finite reaches "
            f"{silent[0].name}{f' and {len(silent) - 1} more layers' if silent[1:] else ''}: "
            "all inputs of such a layer get equal weights. Pass data that reach it, or leave "
            "it out (layers=...).",
            SondeWarning,
            stacklevel=2,
        )
    for one in silent:
        moments |= _without_rows(one)
    return LayerGrams.of(moments, broken, model_record(live.module))


def report_broken(owner: str, broken: int, n: int) -> None:
    """Warn of rows that were left out; raise if they are more than a quarter of all.

    Parameters
    ----------
    owner : str
        For the message.
    broken : int
        Rows that are not finite, or too large to square.
    n : int
        The other rows.

    Raises
    ------
    InputError
        If more than a quarter of the rows are broken.
    """
    if not broken:
        return
    words = (
        f"{owner}: {broken:,} of {plural(broken + n, 'row')} at the inputs of layers "
        f"{'is' if broken == 1 else 'are'} not finite or too large to square"
    )
    if broken > MOST_LEFT_OUT * (broken + n):
        raise InputError(
            f"{words}. Expected at most {MOST_LEFT_OUT:.0%} of such rows. Clean the examples, or "
            "load the model in float32."
        )
    were = "It was" if broken == 1 else "They were"
    warnings.warn(f"{words}. {were} left out.", SondeWarning, stacklevel=3)


def add_rows(
    found: dict[str, MomentsState],
    chosen: Mapping[nn.Module, Weighted],
    calls: list[tuple[nn.Module, Tensor]],
    batch: InputBatch,
    exact: bool = False,
) -> int:
    """Add the rows that layers read to moments; return how many are not finite, or too large."""
    broken = 0
    for name, rows in _rows_of(chosen, calls, batch).items():
        finite = finite_rows(rows)
        if not bool(finite.all()):
            broken += int((~finite).sum())
            rows = rows[finite]
        if len(rows):
            state = _moments(rows, exact)
            found[name] = _both(found.get(name), state)
    return broken


def _both(a: MomentsState | None, b: MomentsState) -> MomentsState:
    """Return the merged moments of two sets of rows; a set may be empty."""
    if a is None or a.n == 0:
        return b
    return Moments().merge(a, b) if b.n else a


def silent_layers(found: Mapping[str, MomentsState], layers: Iterable[Weighted]) -> list[Weighted]:
    """Return the layers that received no row."""
    read = {layer for name in found for layer in name.partition(GROUP)[0].split(JOIN)}
    return [one for one in layers if one.name not in read]


def _without_rows(layer: Weighted) -> dict[str, MomentsState]:
    """Return the states of a layer that received no row."""
    dim = layer.matrix().shape[1]
    empty = [torch.zeros(*shape, dtype=torch.float64) for shape in ((dim,), (dim, dim))]
    return {f"{layer.name}{GROUP}{i}": MomentsState(0, *empty) for i in range(layer.groups)}


def require_rows(found: Mapping[str, MomentsState], layers: Iterable[Weighted]) -> None:
    """Raise if a layer received no row.

    Raises
    ------
    InputError
        Naming the first.
    """
    silent = sorted(one.name for one in silent_layers(found, layers))
    if silent:
        raise InputError(
            "layer_grams: expected rows at every layer, got none that is finite at "
            f"{silent[0]}{f' and {len(silent) - 1} more' if silent[1:] else ''}. Pass data that "
            "reach this layer."
        )


def _moments(rows: Float[Tensor, "row dim"], exact: bool) -> MomentsState:
    """Return the moments of a batch, with products in float64 or in the rows' dtype."""
    if exact:
        return Moments().observe(rows)
    mean, centred, residual = centre(rows)
    scatter = gram(centred, centred.dtype)
    scatter.addr_(
        residual, residual, alpha=-len(rows)
    )  # in place: a third of the time of a wide layer
    return MomentsState(len(rows), mean, scatter)


def _rows_of(
    chosen: Mapping[nn.Module, Weighted], calls: list[tuple[nn.Module, Tensor]], batch: InputBatch
) -> dict[str, Tensor]:
    """Return the rows of each tensor that layers read in one forward pass, by the layers' names."""
    readers: dict[Any, list[Weighted]] = defaultdict(list)
    tensors: dict[Any, Tensor] = {}
    for module, x in calls:
        layer = chosen[module]
        way = None if layer.is_linear else layer.name
        key = id(x), way
        tensors[key] = x
        readers[key].append(layer)
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for key, layers in readers.items():
        name = JOIN.join(sorted({layer.name for layer in layers}))
        x = without_padding(tensors[key], batch)
        for i, part in enumerate(layers[0].rows(x)):
            rows[f"{name}{GROUP}{i}"] += [part] * (len(layers) // len({*layers}))
    return {name: torch.cat(p) if len(p) > 1 else p[0] for name, p in rows.items()}


def without_padding(x: Tensor, batch: InputBatch) -> Tensor:
    """Return rows without padding, for inputs with a row for each token."""
    for mask in (batch.mask, batch.decoder_mask):
        if mask is None or bool(mask.all()):
            continue
        if x.shape[:2] == mask.shape:
            return x[mask.to(x.device)]
        if x.ndim == 2 and len(x) == mask.numel():
            return x[mask.flatten().to(x.device)]
    return x


def layers_of_weight(module: nn.Module, name: str) -> list[str]:
    """Return all layers that share a layer's weight, this layer included."""
    weight = module.get_submodule(name).weight
    return [n for n, part in module.named_modules() if part._parameters.get("weight") is weight]


def gram_of(grams: LayerGrams, readers: list[str], group: int) -> Float[Tensor, "dim dim"]:
    """Return the mean of ``x x^T`` over all rows that a weight multiplies."""
    state = grams.of_layers(readers, group)
    if state.n == 0:
        return torch.eye(len(state.mean), dtype=torch.float64)
    return state.second_moment


def grams_for(
    owner: str, model: Model, given: Inputs | LayerGrams, layers: Sequence[str] | None
) -> LayerGrams:
    """Return the given moments of layers' inputs, or compute them over the examples.

    Raises
    ------
    StateError
        If they were taken at another model.
    """
    if not isinstance(given, LayerGrams):
        return layer_grams(model, given, layers=None if layers is None else tuple(layers))
    require_measured_on(
        model.module, given.model, f"{owner}.plan: the inputs of layers", "layer_grams"
    )
    return given


def parts_of(
    layer: Weighted, model: Model, grams: LayerGrams
) -> Iterator[tuple[Tensor, Float[Tensor, "dim dim"]]]:
    """Return, for each group of a layer, its output rows and its input's second moment."""
    readers, weight = layers_of_weight(model.module, layer.name), layer.module.weight
    for i, rows in enumerate(torch.arange(layer.n_out).chunk(layer.groups)):
        yield rows, gram_of(grams, readers, i).to(weight.device)


def lifted(
    h: Float[Tensor, "dim dim"], layer: Weighted, model: Model, grams: LayerGrams, by: Shrinkage
) -> Float[Tensor, "dim dim"]:
    """Return a layer's second moment plus a part of its mean diagonal, for fits of few rows.

    Parameters
    ----------
    h : Float[Tensor, "dim dim"]
        Second moment of the layer's inputs, or of one group of them.
    layer, model, grams
        As in ``parts_of``; they say how many rows there were.
    by : float or "oas"
        Fraction of the mean diagonal that is added; "oas" estimates it from the number of rows.
    """
    n = grams.of_layers(layers_of_weight(model.module, layer.name), 0).n
    weight = float(oas_weight(h, n)) if by == "oas" else by
    return h + weight * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype, device=h.device)
