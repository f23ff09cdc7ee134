"""Open the stream that a bundle needs from a model and data: its sites, reducer and columns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sonde.core.errors import SiteError
from sonde.core.sinks import AUTO, KEEP
from sonde.core.site import Reducer
from sonde.core.stream import Stream
from sonde.data import kept_for
from sonde.files.places import to_path
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.header import require_same_model, unreadable_sites
from sonde.run.instruments.asked import asking_logits
from sonde.run.reading.read import ARRAYS, open_store, read, require_alone
from sonde.run.reading.recipe import default_options, recipe_in
from sonde.run.scoring.batches import needs_of
from sonde.stats import By, CalibratedScorer
from sonde.store import Store, is_store
from sonde.tap import LiveStream


def open_for(
    fitted: Fitted,
    model: Any,
    data: Any,
    by: By | None = None,
    /,
    *,
    new_classes: bool = True,
    **options: Any,
) -> Stream:
    """Return the stream that a bundle needs: its sites, its reducer, its objective.

    With ``new_classes`` labels may name classes that the model does not have: unusual rows often
    belong to a new class.
    """
    needs_logits = _needs_logits(fitted) or by == "predicted"
    is_stored = isinstance(model, str | Path) and is_store(to_path(model))
    if not (is_stored or isinstance(model, Stream)):
        options |= _class_column(fitted, model, data, options)
    return open_as(fitted.header, needs_logits, model, data, options, new_classes)


def open_as(
    header: dict[str, Any],
    needs_logits: bool,
    model: Any,
    data: Any,
    options: dict[str, Any],
    new_classes: bool = True,
) -> Stream:
    """Return the stream with the model, sites and reading in a header."""
    if isinstance(model, Stream):
        require_alone(model, repr(model), data, options)
        model = with_reducer(with_sinks(model, header), header)
        return asking_logits(model) if needs_logits else model
    if isinstance(model, str | Path) and is_store(to_path(model)):
        return _stored(header, model, data, options)
    reading = header.get("reading") or {}
    by_site = {s["text"]: s["reducer"] for s in header["sites"] if "|" not in s["text"]}
    sites, reducers = list(by_site), set(by_site.values())
    if len(reducers) > 1:
        sites = [f"{site}|{reducer}" for site, reducer in by_site.items()]
    wants = {name: reading.get(name) for name in ("objective", "perturb")} | {"sites": sites}
    if not (isinstance(model, str) and model == ARRAYS):
        one = Reducer.parse(next(iter(reducers))) if len(reducers) == 1 else "auto"
        wants |= {"reducer": one, "keep_special": bool(reading.get("keep_special", False))}
        wants |= {"logits": reading.get("logits_output", True) if needs_logits else None}
        wants |= {"sinks": reading.get("sinks") or KEEP}
        wants |= {"new_classes": new_classes}
    try:
        kept = default_options(header, model, data, options)
        stream = read(model, data, **{**wants, **kept, **options})
        _ = stream.schema  # sites are looked up here
    except SiteError as error:
        raise unreadable_sites("score", sites, error) from error
    return stream


def with_sinks(stream: Stream, header: dict[str, Any]) -> Stream:
    """Return a live stream with the sinks of the fit, unless its own were named."""
    if not isinstance(stream, LiveStream) or stream.sinks != AUTO:
        return stream
    return replace(stream, sinks=(header.get("reading") or {}).get("sinks") or KEEP)


def with_reducer(stream: Stream, header: dict[str, Any]) -> Stream:
    """Return a live stream whose reducer ``auto`` is that of the fit."""
    if not isinstance(stream, LiveStream) or stream.reducer != AUTO or stream.further:
        return stream
    fitted = {s["reducer"] for s in header["sites"]}
    if len(fitted) > 1 or {str(s.reducer) for s in stream.schema} == fitted:
        return stream
    return replace(stream, reducer=Reducer.parse(fitted.pop()))


def _class_column(fitted: Fitted, model: Any, data: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that read a bundle's calibration column as labels."""
    columns = {c["by"] for c in fitted.header.get("calibrations", []) if c.get("by")}
    if not columns or model == ARRAYS:
        return {}
    return by_column(fitted, data, options, columns.pop())


def by_column(fitted: Fitted, data: Any, options: dict[str, Any], column: str) -> dict[str, Any]:
    """Return the options that read the values of a column as classes.

    Another label column that was named becomes no input. If the data lack ``column``, the named
    label column stays.
    """
    typed = options.get("label_column")
    if typed in (None, column):
        return {"label_column": column}
    if not kept_for(data, {"label_column": column}):
        return {}
    return {"label_column": column, **without(fitted, options, typed)}


def without(fitted: Fitted, options: dict[str, Any], column: str) -> dict[str, Any]:
    """Return the options that exclude a column from the inputs."""
    kept = recipe_in(fitted.header).get("options", {}).get("ignore_columns")
    named = options.get("ignore_columns") or kept or ()
    names = named.split(",") if isinstance(named, str) else named
    return {"ignore_columns": [*names, column]}


def _stored(
    header: dict[str, Any], place: str | Path, data: Any, options: dict[str, Any]
) -> Stream:
    """Return the rows of a store at the sites of a bundle."""
    store = open_store(place, data, "auto", "auto", {}, options)
    require_same_model(header, store)
    return Store(place, [site["text"] for site in header["sites"]], checked=True)


def _needs_logits(fitted: Fitted) -> bool:
    return any(
        "logits" in needs_of(scorer)
        or (isinstance(scorer, CalibratedScorer) and scorer.by == "predicted")
        for scorer in fitted.scorers.values()
    )
