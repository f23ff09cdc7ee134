"""Choose the kinds of rows that a stream reads: sites, their reducers, and the row unit."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from sonde.core.batch import SiteSchema
from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import InputBatch, Model
from sonde.core.left_out import LeftOut
from sonde.core.site import POSITIONS, Reducer, Site, row_key
from sonde.stats import TOKEN_METRICS
from sonde.tap.model.axes import Axes, find_axes
from sonde.tap.model.influence import Influence
from sonde.tap.model.probe import Probe, TensorLayout
from sonde.tap.model.sites import (
    AUTO,
    ENTRY,
    LOGITS,
    SHOWN,
    Pattern,
    default_sites,
    last_call,
    leaf_sites,
    outputs_left_out,
    places_of,
    resolve,
    unheard,
)
from sonde.tap.model.special_tokens import SpecialTokens, patch_grid
from sonde.tap.model.vary import token_ids
from sonde.tap.rows.kind import Kind
from sonde.tap.rows.reduce import ReducerError, Reduction, possible
from sonde.tap.streams.named_axes import NamedAxes

if TYPE_CHECKING:
    from sonde.tap.streams.live import LiveStream

NO_NEXT_TOKEN = ("encoder", "classifier", "image_classifier")


@dataclass(frozen=True)
class Chosen:
    """The kinds of rows of a stream, in order of execution, and the sites not read."""

    kinds: tuple[Kind, ...]
    left_out: tuple[LeftOut, ...] = ()


def choose_kinds(stream: "LiveStream", batch: InputBatch) -> Chosen:
    """Return the kinds of rows of a stream, and the sites and outputs not read."""
    probe = stream.probe
    predicts = stream.sites == (AUTO,) and _predicts(stream.reducer)
    patterns = (LOGITS,) if predicts else stream.sites
    places = {p.partition("|")[0] for p in patterns if isinstance(p, str)}
    unnamed = default_sites(probe) if AUTO in places else []
    if AUTO in places and not predicts:
        patterns = (*patterns, *(p for p in stream.model.sites if p not in places))
    kinds: list[Kind] = []
    left_out = list(unheard(probe, unnamed))
    refused: SiteError | None = None
    special = SpecialTokens(stream.model, probe, batch, patch_grid(stream.model, probe, batch))
    named, found_by_star, unreadable = _named(stream, patterns)
    left_out += unreadable
    optional = {*unnamed, *found_by_star}
    for site in dict.fromkeys(site for site, _ in named if site not in unnamed):
        left_out += outputs_left_out(site, probe)
    for site, reducer in named:
        if site.port == "grad" and stream.objective is None:
            raise InputError(f"live_stream: port grad needs objective=, got {str(site)!r}.")
        try:
            kinds.extend(_kinds_of(site, reducer or stream.reducer, stream, batch, special))
        except SiteError as error:
            if site not in optional:
                raise
            refused = error
            left_out.append(LeftOut(str(site), str(error).removeprefix("Site: ")))
    if not kinds and unnamed and refused is not None and not isinstance(refused, ReducerError):
        for site in leaf_sites(probe):
            with suppress(SiteError):
                kinds.extend(_kinds_of(site, stream.reducer, stream, batch, special))
    if not kinds and refused is not None:
        raise refused
    _check_all_named(stream.axes, kinds)
    entry = list(_entry(kinds, probe)) if stream.entry and kinds else []
    return Chosen((*entry, *kinds), tuple(left_out))


def _check_all_named(named: Sequence[NamedAxes], kinds: Sequence[Kind]) -> None:
    """Raise if axes named by the user match no site that is read."""
    for axes in named:
        if not any(axes.fits(k.site, len(k.reduction.axes.words)) for k in kinds):
            has = dict.fromkeys(f"{k.site.path} ({k.reduction.axes})" for k in kinds)
            raise SiteError(
                f"axes: expected outputs of {len(axes.words)} axes at {axes.pattern!r}, got only "
                f"{', '.join(list(has)[:SHOWN])}."
            )


def _named(
    stream: "LiveStream", patterns: Sequence[Pattern]
) -> tuple[list[tuple[Site, Reducer | None]], list[Site], list[LeftOut]]:
    """Return the sites that patterns name, each with its reducer after ``|``, if given.

    Also the sites that a ``*`` found beside others, and those among them that cannot be read.
    """
    by_reducer: dict[str, list[Pattern]] = {}
    for pattern in patterns:
        place, _, name = pattern.partition("|") if isinstance(pattern, str) else (pattern, "", "")
        by_reducer.setdefault(name, []).append(place)
    chosen: dict[Site, Reducer | None] = {}
    loose, unreadable = list[Site](), list[LeftOut]()
    for name, places in by_reducer.items():
        sites, left_out = _readable(stream, places)
        unreadable += left_out
        loose += [site for site, is_loose in sites if is_loose]
        for site, _ in sites:
            if site in chosen:
                raise SiteError(
                    f"Site: {str(site)!r} is named with two reducers. Pass one of the two with "
                    "further=."
                )
            chosen[site] = Reducer.parse(name) if name else None
    return sorted(chosen.items(), key=lambda item: item[0]), loose, unreadable


def _readable(
    stream: "LiveStream", places: Sequence[Pattern]
) -> tuple[list[tuple[Site, bool]], list[LeftOut]]:
    """Return the sites that patterns name, whether by a ``*``, and the unreadable sites."""
    module, probe = stream.model.module, stream.probe
    starred = [p for p in places if "*" in str(p)]
    plain = [p for p in places if p not in starred]
    chosen = {site: False for site in (resolve(module, plain, probe) if plain else ())}
    left_out: list[LeftOut] = []
    refused: SiteError | None = None
    for place in (one for pattern in starred for one in places_of(pattern, probe.names)):
        try:
            chosen |= {s: True for s in resolve(module, place, probe) if s not in chosen}
        except SiteError as error:
            refused = error
            left_out.append(LeftOut(str(place), str(error).removeprefix("Site: ")))
    if not chosen and refused is not None:
        raise refused
    return list(chosen.items()), left_out


def _entry(kinds: list[Kind], probe: Probe) -> Iterator[Kind]:
    """Yield the first site's input rows, if they are laid out like its output."""
    first = kinds[0].site
    if first.port != "out" or first.call in ("last", "all"):
        return
    call = last_call(first, probe.calls(first.path))
    every = [k for k in kinds if k.site == first][-1]
    try:
        received = probe.leaf(first.path, call, "in", None)
    except SiteError:
        return
    if received == probe.leaf(first.path, call, "out", first.key):
        order = probe.order(first.path, call, "in")
        site = replace(first, port="in", key=None, order=order)
        key = f"{row_key(site)}|{ENTRY}"
        yield replace(every, key=key, site=site, schema=replace(every.schema, key=key, site=site))


def _kinds_of(
    site: Site,
    asked: str | Reducer,
    stream: "LiveStream",
    batch: InputBatch,
    special: SpecialTokens,
) -> Iterator[Kind]:
    probe = stream.probe
    if isinstance(asked, str) and asked not in (AUTO, POSITIONS):
        asked = Reducer.parse(asked)
    call = last_call(site, probe.calls(site.path))
    port = "out" if site.port == "grad" else site.port
    leaf, other = probe.leaf(site.path, call, port, site.key)
    if port == "probs" and other is not None and other.shape[2:] != leaf.shape[2:]:
        _refuse_wide(site, leaf, probe)
    named = next((n for n in stream.axes if n.fits(site, len(leaf.shape))), None)
    axis = named.dim if named else asked.axis if isinstance(asked, Reducer) else None
    axes = find_axes(probe, site.path, call, port, site.key, axis, Influence(stream.model, batch))
    if named is not None:
        named.check(site, axes)
    if stream.further or "flat" not in (asked, getattr(asked, "name", None)):
        axes = special.marked(axes, leaf, f"{site.path}:{port}")
    reducer = each_position(axes) if asked == POSITIONS else asked
    if not isinstance(reducer, Reducer):
        reducer = Reducer.parse(default_reducer(stream.model, axes, batch))
    reducer = replace(reducer, axis=axis)
    if _predicts(reducer):
        _check_predicts(site, leaf, stream)
    module = type(probe.names.modules[site.path]).__name__
    yield _kind(row_key(site), site, _with(reducer, stream), axes, leaf, module)
    for more in stream.further:
        name = replace(_with(more, stream), axis=axis)
        fits = name.name in possible(axes) and not _predicts(name)
        if axes.kind != "vector" and fits and name.name != reducer.name:
            yield _kind(row_key(site, more), site, name, axes, leaf, module)


def _refuse_wide(site: Site, leaf: TensorLayout, probe: Probe) -> None:
    """Raise if probability rows are as wide as their text is long."""
    figures = [key for key in probe.trace[site.path][0].ports["probs"][1] if key.isidentifier()]
    raise SiteError(
        f"Site: the width of a row of {str(site)!r} is the length of its text, so rows of "
        "different texts have different widths. Read a statistic of each head, "
        f"{site.path}:probs.KEY with KEY one of {', '.join(figures)}; or the probabilities of "
        "a single forward pass, with sonde.Tap."
    )


def _predicts(reducer: str | Reducer) -> bool:
    return "predictions" in (reducer, getattr(reducer, "name", None))


def _check_predicts(site: Site, leaf: TensorLayout, stream: "LiveStream") -> None:
    """Raise if predictions are read elsewhere than at a language model's next-token logits."""
    outputs = stream.probe.output
    logits = outputs.get("logits", outputs.get(""))
    if stream.model.task in NO_NEXT_TOKEN or logits is None or logits.shape != leaf.shape:
        width = "none" if logits is None else f"shape {logits.shape}"
        raise SiteError(
            f"Reducer 'predictions': expected the next-token logits of a language model ({width}), "
            f"got shape {leaf.shape} at {str(site)!r} of a model of task {stream.model.task!r}. "
            "Read the last linear layer of a causal model."
        )


def _with(reducer: Reducer, stream: "LiveStream") -> Reducer:
    return replace(reducer, keep_special=True) if stream.keep_special else reducer


def _kind(
    key: str, site: Site, reducer: Reducer, axes: Axes, leaf: TensorLayout, module: str
) -> Kind:
    reduction = Reduction(reducer, axes)
    kept = torch.float32 if reducer.name == "predictions" else leaf.dtype
    dtype = str(kept).removeprefix("torch.")
    dim = _dim(reducer, axes, leaf)
    places = (axes.prefix, axes.suffix, axes.cls)
    schema = SiteSchema(key, site, reducer, dim, dtype, module, str(axes), *places)
    return Kind(key, site, reduction, schema)


def _dim(reducer: Reducer, axes: Axes, leaf: TensorLayout) -> int:
    if reducer.name == "predictions":
        return len(TOKEN_METRICS)
    sizes = dict(zip(axes.words, leaf.shape, strict=True))
    if reducer.name == "flat":
        return math.prod(size for word, size in sizes.items() if word != "row")
    return sizes.get("dim", 1)


def each_position(axes: Axes) -> Reducer | None:
    """Return the reducer that gives a row per token (also special ones) or patch, or None."""
    if "tokens" in possible(axes):
        return Reducer("tokens", keep_special=True)
    return Reducer("patches") if "patches" in possible(axes) else None


def default_reducer(model: Model, axes: Axes, batch: InputBatch) -> str:
    """Return ``last`` for causal models, ``cls`` with a class token, else ``mean``.

    Inputs that come in steps give a row for each step. A model that pools tokens itself says how.
    """
    if batch.segment is not None and axes.kind == "pos":
        return "steps"
    if model.reducer != AUTO and axes.kind == "pos":
        return model.reducer
    if model.task == "causal":
        return "last" if "last" in possible(axes) else "mean"
    if axes.kind == "space":
        return "mean" if axes.cls is None else "cls"
    is_encoder = model.task in ("classifier", "encoder") and axes.kind == "pos"
    return _place_of_cls(model, batch) if is_encoder else "mean"


def _place_of_cls(model: Model, batch: InputBatch) -> str:
    """Return the reducer of the class token, which some models put at the end of a text."""
    if model.processor is None:
        first = batch.special is not None and bool(batch.special[:, 0].all())
        return "cls" if first else "mean"
    own, ids = getattr(model.processor, "cls_token_id", None), token_ids(batch)
    if own is None or ids is None:
        return "mean" if own is None else "cls"
    real = torch.ones_like(ids) if batch.mask is None else batch.mask.to(ids)
    ends = ids.shape[1] - 1 - real.flip(1).argmax(1, keepdim=True)
    for name, place in (("cls", real.argmax(1, keepdim=True)), ("last", ends)):
        if bool((ids.gather(1, place) == own).all()):
            return name
    return "mean"
