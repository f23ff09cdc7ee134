"""Options of ``sonde.read`` that methods require to get their rows and columns."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, SondeWarning
from sonde.core.instrument import Detector, Instrument, reads_rows, score_needs
from sonde.core.site import HEAD_INPUT, POSITIONS
from sonde.core.stream import Stream
from sonde.data.inputs import ItemInputs
from sonde.data.opening import with_room_for_logits
from sonde.engine.requests import Task
from sonde.stats import HeadWeightsState
from sonde.tap import LiveStream

COMPARED = {"label", "logits"}
SHOWN = 6


CLOSE = 0.05
AUTO = "auto"
BY_VALUE = ("objective", "perturb")
PATCHES = frozenset(("patches", "patches3"))


def asked(instruments: Sequence[Instrument]) -> dict[str, Any]:
    """Return the combined reading options that some methods require.

    If some methods ask for the input of the final linear layer, the other methods keep the default
    sites. A row for each position is only a wish: it counts if all methods that read rows have this
    wish.

    Raises
    ------
    InputError
        If two methods ask for different values of an option.
    """
    options: dict[str, Any] = {}
    for instrument in instruments:
        for name, value in instrument.reading().items():
            if value == POSITIONS:
                continue
            if options.setdefault(name, value) != value:
                raise InputError(
                    f"{type(instrument).__name__}: expected {name}={value!r}, but another "
                    f"method needs {options[name]!r}. Fit the two methods in separate runs."
                )
    wishes = [wants_positions(i) for i in instruments if reads_rows(i)]
    if wishes and all(wishes):
        options.setdefault("reducer", POSITIONS)
    others = [i for i in instruments if "sites" not in i.reading() and reads_rows(i)]
    if others and options.get("sites") == HEAD_INPUT:
        reducer = options.pop("reducer", None)
        options["sites"] = [AUTO if reducer is None else f"{AUTO}|{reducer}", HEAD_INPUT]
    return options


def ready(instruments: Sequence[Instrument], stream: Stream) -> Stream:
    """Return the stream with the columns that the methods require.

    Raises
    ------
    InputError
        If the stream was read otherwise than a method asks, or if its labels are not the model's
        classes and a method compares both.
    """
    stream = with_declared_reducer(instruments, stream)
    stream = asking_logits(stream) if need(instruments, "logits") else stream
    check_reading(instruments, stream)
    check_classes(instruments, stream)
    return stream


def with_declared_reducer(instruments: Iterable[Instrument], stream: Stream) -> Stream:
    """Return a live stream whose reducer ``auto`` is the only one that methods declare."""
    if not isinstance(stream, LiveStream) or stream.reducer != AUTO or stream.further:
        return stream
    if any("|" in str(site) for site in stream.sites):  # some sites name their own reducer
        return stream
    declared = {i.reading().get("reducer") for i in instruments} - {None, POSITIONS}
    return replace(stream, reducer=declared.pop()) if len(declared) == 1 else stream


def asking_logits(stream: Stream) -> Stream:
    """Return the stream with logits; a live model's output of fitting shape may count as logits.

    Batches whose size was not given become small enough for the logits.
    """
    if not isinstance(stream, LiveStream) or (stream.with_logits and stream.logits_key is not None):
        return stream
    inputs = stream.inputs
    if isinstance(inputs, ItemInputs):
        inputs = with_room_for_logits(stream.model, inputs)
    return replace(stream, inputs=inputs, with_logits=True, logits_asked=True)


def need(instruments: Iterable[Instrument], column: str) -> bool:
    """Return whether a method is fitted on a column or needs it for scoring."""
    chosen = list(instruments)
    reads = [read for i in chosen for read in i.all_reads().values()]
    scored = [name for i in chosen if isinstance(i, Detector) for name in score_needs(i)]
    return column in scored or any(column in read.statistic.needs() for read in reads)


def wants_positions(instrument: Instrument) -> bool:
    """Return whether a method looks for a property that a single token or patch may have."""
    return instrument.reading().get("reducer") == POSITIONS


def at_head(instrument: Instrument) -> bool:
    """Return whether a method requires the input of the model's final linear layer."""
    return instrument.reading().get("sites") == HEAD_INPUT


def head_sites(instruments: Iterable[Instrument], stream: Stream) -> frozenset[str] | None:
    """Return the sites whose rows the final linear layer turns into the logits, or None.

    Other sites may have the layer's width too, so the layer is tried on the first rows. None if no
    method asks for these sites, or if they cannot be tried: for plain arrays, and for streams
    without the layer or the logits.
    """
    if not any(map(at_head, instruments)) or all(s.module == "" for s in stream.schema):
        return None
    batch = stream.first_batch()
    if batch.head is not None and batch.logits is None and isinstance(stream, LiveStream):
        batch = replace(stream, with_logits=True).first_batch()
    if batch.head is None or batch.logits is None:
        return None
    return frozenset(s.key for s in stream.schema if _enters_head(s, batch, *batch.head))


def _enters_head(site: SiteSchema, batch: Batch, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether a row of each example gives its logits, or the site feeds a linear layer."""
    if site.dim != weight.shape[1]:
        return False
    if site.site.port == "in" and site.module == "Linear":
        return True
    assert batch.logits is not None
    again = HeadWeightsState(weight, bias).logits(batch.rows[site.key].to(weight.device).float())
    for i, logits in enumerate(batch.logits.to(again)):
        error = (again[(batch.example[site.key] == i).to(again.device)] - logits).abs().amax(1)
        if len(error) and bool(error.min() > CLOSE * (logits.max() - logits.min())):
            return False
    return True


def check_reading(instruments: Iterable[Instrument], stream: Stream) -> None:
    """Raise if a stream was not read as a method requires.

    Plain arrays do not say how they were read, so they pass. Sites and reducers are checked
    elsewhere, site by site.

    Raises
    ------
    InputError
        With the option to pass to ``sonde.read``.
    """
    identity = stream.identity()
    pooled = [s for s in stream.schema if s.reducer.one_row and s.axes != "row dim"]
    for instrument in instruments:
        if pooled and wants_positions(instrument):
            warnings.warn(
                f"{type(instrument).__name__}: the reducer {str(pooled[0].reducer)!r} averages "
                "over tokens or patches, so an effect on a single token or patch is hardly "
                f"visible (at {pooled[0].key}). Read with reducer={POSITIONS!r} (--reducer "
                f"{POSITIONS}).",
                SondeWarning,
                stacklevel=5,
            )
        for name, value in instrument.reading().items():
            if name in BY_VALUE and identity.get(name, value) != value:
                raise InputError(
                    f"fit: {type(instrument).__name__} expects a stream that was read with "
                    f"{name}={value!r}, got {identity[name]!r}. Pass {name}={value!r} to "
                    "sonde.read."
                )


def check_grids(tasks: Iterable[Task], stream: Stream) -> None:
    """Raise if joined images differ in patch grid, since equal indices are then other positions.

    Raises
    ------
    InputError
        Naming two sites and their grids.
    """
    reducers = {s.key: s.reducer.name for s in stream.schema}
    joint = [t.keys for t in tasks if len(t.keys) > 1 and PATCHES & {reducers[k] for k in t.keys}]
    if not joint:
        return
    grids = {
        key: tuple((places.amax(0) + 1).tolist())
        for key, places in stream.first_batch().grid.items()
        if len(places)
    }
    for keys in joint:
        sizes = {grids[key]: key for key in reversed(keys) if key in grids}
        if len(sizes) > 1:
            shapes = " and ".join(
                f"{h} x {w} at {key}" for (h, w), key in list(sizes.items())[::-1]
            )
            raise InputError(
                "fit: expected the same grid of patches at all sites that are read together, "
                f"got {shapes}. Read sites with the same grid, or use the reducer 'mean'."
            )


def check_classes(instruments: Iterable[Instrument], stream: Stream) -> None:
    """Raise if labels are not the model's classes and a method compares them with its answers.

    Labels that are not the model's classes are numbered in sorted order, so a number may mean
    another class to the model.

    Raises
    ------
    InputError
        Naming the method and the labels.
    """
    if not isinstance(stream, LiveStream) or not isinstance(stream.inputs, ItemInputs):
        return
    if stream.inputs.own_labels or not stream.label_names:
        return
    names = ", ".join(stream.label_names[:SHOWN])
    for instrument in instruments:
        if any(set(r.statistic.needs()) >= COMPARED for r in instrument.all_reads().values()):
            raise InputError(
                f"{type(instrument).__name__}: expected labels that are the model's classes, "
                f"which are compared with its answers, got {names}"
                f"{'' if len(stream.label_names) <= SHOWN else ', ...'}. Name its outputs in "
                "their order (--classes), correct the labels, or choose another column "
                "(--label-column)."
            )
