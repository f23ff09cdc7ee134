"""Insert layers named on the command line into a copy of a model, and measure them."""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

import sonde.layers
from sonde.core.errors import InputError, ShapeError, SiteError, near
from sonde.core.inputs import Inputs, Model
from sonde.layers import Layer, inserted, inserted_layers, removed
from sonde.layers.conditions import ConditionedLayer
from sonde.run.instruments.families import snake_case
from sonde.run.instruments.words import parse_methods
from sonde.run.training.losses import Listed
from sonde.tap import live_stream
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.sites import places_of


@dataclass(frozen=True)
class AskedLayer:
    """A layer to insert, with its site.

    Parameters
    ----------
    word : str
        As it was typed, without the site.
    site : str
    kind : type of Layer
    given : dict
        Parameters that were typed.
    """

    word: str
    site: str
    kind: type[Layer]
    given: dict[str, Any]

    def made(self, dim: int) -> Layer:
        """Return the layer for states of this width; a width typed by the user takes precedence.

        Raises
        ------
        InputError
            If parameters are missing or wrong.
        """
        takes = "dim" in _parameters(self.kind)
        try:
            return self.kind(**{**({"dim": dim} if takes else {}), **self.given})
        except (TypeError, ValueError) as error:
            if takes and not _is_required(self.kind, "dim"):  # some parameters exclude a width
                with suppress(TypeError, ValueError):
                    return self.kind(**self.given)
            raise InputError(f"--insert {self.word}@{self.site}: {error}") from error


def asked_layers(words: Sequence[str]) -> list[AskedLayer]:
    """Parse layers such as ``adapter(width=8)@blocks.3``.

    Raises
    ------
    InputError
        If a word names no layer or no site, a layer that cannot stand behind a module, or leaves
        out a parameter that the layer needs.
    """
    asked: list[AskedLayer] = []
    for word in words:
        method, _, site = word.rpartition("@")
        if not method or not site:
            raise InputError(f"--insert: expected LAYER@SITE, as unit_gate@blocks.3, got {word!r}.")
        for make in parse_methods(method, _find):
            asked.append(AskedLayer(method, site, *make()))
            _require_insertable(asked[-1])
    return asked


def _require_insertable(asked: AskedLayer) -> None:
    """Raise if no parameters allow a layer behind a module, or a required parameter is missing."""
    kind, word, at = asked.kind, snake_case(asked.kind.__name__), f"--insert {asked.word}"
    if _needed(kind) is None:
        names = ", ".join(one.word for one in listed_layers())
        raise InputError(
            f"{at}@{asked.site}: expected a layer that keeps the shape of one site, starts as "
            f"the identity and has parameters to train, got {kind.__name__}. Use it in Python "
            f"(sonde.layers.{kind.__name__}), or insert one of these layers: {names}."
        )
    needed = [n for n in _parameters(kind) if _is_required(kind, n) and n != "dim"]
    if missing := [name for name in needed if name not in asked.given]:
        example = next(e for e in kind.examples if _trains(kind, e))
        typed = {name: example[name] for name in missing} | asked.given
        words = ",".join(f"{name}={value!r}" for name, value in typed.items())
        raise InputError(
            f"{at}@{asked.site}: expected a value of {' and '.join(missing)}, got none. Add "
            f"it, as {word}({words})@{asked.site}."
        )


def check_places(model: Model, asked: Sequence[AskedLayer]) -> None:
    """Raise if the model lacks a site, before data are read.

    Raises
    ------
    SiteError
        If a site names no module of the model, or several.
    """
    names = ModuleNames(model.module)
    for one in asked:
        try:
            places = places_of(one.site, names)
        except SiteError as error:
            raise SiteError(f"--insert {one.word}@{one.site}: {error}") from error
        if len(places) != 1:
            raise SiteError(f"--insert: expected one site, got {len(places)} at {one.site}.")


def _starting(asked: AskedLayer, layer: Layer) -> Layer:
    """Return a layer if it starts as the identity and has trainable weights, else raise."""
    needed, word = _needed(asked.kind) or (), snake_case(asked.kind.__name__)
    is_open = any(p.requires_grad for p in layer.parameters())
    if layer.insertable and len(layer.layout) == 1 and is_open:
        return layer
    hint = f", as {word}({','.join(needed)})@{asked.site}" if any("=" in n for n in needed) else ""
    raise InputError(
        f"--insert {asked.word}@{asked.site}: expected a layer that keeps the shape, starts as "
        f"the identity and has parameters to train, got {asked.kind.__name__} with other "
        f"parameters. Choose its parameters{hint}, or another layer: `sonde train --list` lists "
        "them."
    )


def with_asked(model: Model, asked: Sequence[AskedLayer], examples: Inputs, seed: int) -> Model:
    """Return a copy of a model with new layers at their sites; it shares the model's weights.

    Parameters
    ----------
    model : Model
    asked : sequence of AskedLayer
    examples : Inputs
        Examples that show the width of the states.
    seed : int
        Draws the first weights of the layers.

    Raises
    ------
    SiteError
        If there is no such site, or the site cannot hold a layer.
    InputError
        If a layer changes the shape, has wrong parameters, or shows later tokens to a causal model.
    """
    layers: dict[str, Layer] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for one in asked:
            sites = live_stream(model, examples, [one.site], logits=False).schema
            if len(sites) != 1:
                raise SiteError(f"--insert: expected one site, got {len(sites)} at {one.site}.")
            path = str(sites[0].site)
            if path in layers:
                raise InputError(f"--insert: {one.site} is named twice. Give each layer a site.")
            layers[path] = _starting(one, one.made(sites[0].dim))
            if model.task == "causal" and _sees_ahead(layers[path], sites[0].dim):
                raise InputError(
                    f"--insert {one.word}@{one.site}: the layer lets earlier tokens attend to "
                    "later tokens, so a model that predicts the next token would see the "
                    "correct answers. Choose causal parameters, such as "
                    "attention(causal=True)."
                )
    return inserted(model, layers)


@torch.no_grad()
def _sees_ahead(layer: Layer, dim: int) -> bool:
    """Return whether a later token can change earlier tokens, tested with random weights."""
    own, grid = copy.deepcopy(layer).double().eval(), vars(layer).get("grid")
    for p in own.parameters():
        p.normal_()
    x = torch.randn(1, math.prod(grid) if grid else 8, dim, dtype=torch.float64)
    later = torch.cat((x[:, :-1], torch.randn_like(x[:, -1:])), dim=1)
    try:
        return not torch.allclose(own(x)[:, :-1], own(later)[:, :-1])
    except ShapeError:  # no layer for tokens: the training says so
        return False


def without_layers(model: Model | nn.Module) -> Any:
    """Return a model without its inserted layers, or the model itself if it has none."""
    return removed(model) if inserted_layers(model) else model


@dataclass(frozen=True)
class LayerFigures:
    """Size and effect of an inserted layer after training.

    Parameters
    ----------
    layer, site : str
    n_parameters : int
    share : float
        Of all parameters of the model.
    moved : float
        Root mean square of the layer's change of the states, divided by that of the states.
    """

    layer: str
    site: str
    n_parameters: int
    share: float
    moved: float


def layer_figures(model: Model, module: nn.Module, held: Inputs) -> list[LayerFigures]:
    """Return how much each inserted layer changes on held-out examples."""
    layers = inserted_layers(module)
    paths = {id(part): path for path, part in module.named_modules()}
    n_all = sum(p.numel() for p in module.parameters())
    reducer = "tokens" if model.task in ("causal", "seq2seq") else "auto"
    trained, figures = replace(model, module=module), list[LayerFigures]()
    for site, layer in layers.items():
        path = paths[id(layer)]
        try:
            change = _relative_change(trained, path, held, reducer)
        except SiteError:  # the layer takes the states in an order that has no rows of this kind
            change = _relative_change(trained, path, held, "flat")
        n = layer.n_parameters
        figures.append(LayerFigures(type(layer).__name__, site, n, n / n_all, change))
    return figures


def _relative_change(model: Model, path: str, held: Inputs, reducer: str) -> float:
    """Return the root mean square of a module's change, divided by that of its input."""
    ports = [f"{path}:in", f"{path}:out"]
    stream = live_stream(model, held, ports, reducer, logits=False)
    before, after = (next(k.key for k in stream.schema if str(k.site) == port) for port in ports)
    moved = size = 0.0
    for batch in stream.batches(0, len(stream)):
        x, y = batch.rows[before].double(), batch.rows[after].double()
        moved += float((y - x).square().sum())
        size += float(x.square().sum())
    return (moved / size) ** 0.5 if size else float("nan")


def listed_layers() -> list[Listed]:
    """Return the layers that can be inserted and trained, in alphabetical order."""
    entries = [
        Listed(word, needs, (inspect.getdoc(kind) or "").split("\n")[0])
        for word, kind in _kinds().items()
        if (needs := _needed(kind)) is not None
    ]
    return sorted(entries, key=lambda one: one.word)


def _trains(kind: type[Layer], given: dict[str, Any]) -> bool:
    """Return whether a layer with these parameters starts as the identity and has weights."""
    try:
        with torch.random.fork_rng(devices=[]):
            layer = kind(**given)
    except (TypeError, ValueError):
        return False
    is_open = any(p.requires_grad for p in layer.parameters())
    has_states_alone = not (isinstance(layer, ConditionedLayer) and layer.condition)
    return layer.insertable and len(layer.layout) == 1 and is_open and has_states_alone


def _needed(kind: type[Layer]) -> tuple[str, ...] | None:
    """Return the required parameters, or None if no parameters allow insertion.

    The width is never among them, as the states give it. If the required parameters alone do not
    start as the identity, all parameters of an example that does are returned, with values.
    """
    needed = [name for name in _parameters(kind) if _is_required(kind, name)]
    for example in kind.examples:
        if _trains(kind, example):
            least = {name: value for name, value in example.items() if name in (*needed, "dim")}
            if _trains(kind, least):
                return tuple(name for name in needed if name != "dim")
            return tuple(f"{n}={value!r}" for n, value in example.items() if n != "dim")
    return None


def _find(word: str) -> Any:
    """Return a lookup function for layers that stores their parameters."""
    kinds = _kinds()
    if word not in kinds:
        words = ", ".join(one.word for one in listed_layers())
        raise InputError(
            f"--insert: no layer is called {word!r}.{near(word, kinds)} Known: {words}."
        )
    kind = kinds[word]

    def make(**given: Any) -> Callable[[], tuple[type[Layer], dict[str, Any]]]:
        return partial(tuple, (kind, given))

    vars(make)["__signature__"] = inspect.Signature([*_parameters(kind).values()])
    return make


def _is_required(kind: type[Layer], name: str) -> bool:
    return _parameters(kind)[name].default is inspect.Parameter.empty


def _parameters(kind: type[Layer]) -> dict[str, inspect.Parameter]:
    return dict([*inspect.signature(kind.__init__).parameters.items()][1:])


def _kinds() -> dict[str, type[Layer]]:
    """Return the layer classes of ``sonde.layers`` by their words."""
    members = {name: getattr(sonde.layers, name) for name in sonde.layers.__all__}
    return {
        snake_case(name): kind
        for name, kind in members.items()
        if isinstance(kind, type) and issubclass(kind, Layer) and kind is not Layer
    }
