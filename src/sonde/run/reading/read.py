"""``sonde.read``: turn a model and data, as a user names them, into a lazy stream of states."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sonde.core.errors import InputError, near
from sonde.core.inputs import Model
from sonde.core.perturbation import Perturbation
from sonde.core.site import WEIGHT, Reducer, Site
from sonde.core.stream import Stream
from sonde.data import check_data, open_arrays, open_inputs, reader_of
from sonde.data.inputs import ItemInputs
from sonde.data.table_alone import TableAlone, is_table, table_model
from sonde.data.text_encoding import context_of
from sonde.files.places import to_path
from sonde.run.reading.class_order import numbers_outputs
from sonde.run.reading.load import load
from sonde.store import Store, is_store
from sonde.tap import LiveStream, live_stream, replay, weight_stream
from sonde.tap.generating.replay import ReplayInputs
from sonde.tap.generating.settings import parse_settings, settings_of
from sonde.tap.model.sites import port_of

ARRAYS = "-"
AUTO = "auto"
OF_GENERATION = ("new_tokens", "beams")
SAID_ELSEWHERE = {
    "tokenizer": " Give the tokenizer as processor=.",
    "device": " Load the model on that device: sonde.load(name, device=...), or move the model "
    "before reading.",
    "dtype": " Load the model in that type: sonde.load(name, dtype=...), or convert the model "
    "before reading.",
    "trust_remote_code": " It is an option of sonde.load.",
}
MOST_TEXT = 256 * 2**20
WITH_LOGITS = ("classifier", "image_classifier", "tensor")


def read(
    model: Model | nn.Module | str | Path,
    data: Any = None,
    sites: str | Site | Sequence[str | Site] = "auto",
    reducer: str | Reducer = "auto",
    batch_size: int | str = "auto",
    objective: str | Callable[..., Any] | None = None,
    *,
    further: Sequence[str | Reducer] = (),
    processor: Any = None,
    keep_special: bool = False,
    logits: bool | str | None = None,
    seed: int = 0,
    perturb: Perturbation | dict[str, Any] | None = None,
    generate: str | Mapping[str, Any] | None = None,
    axes: str | Sequence[str] = (),
    check: bool = True,
    sinks: str = AUTO,
    engine: str = "transformers",
    **options: Any,
) -> Stream:
    """Return the stream of a model's hidden states over data; nothing runs before it is iterated.

    Parameters
    ----------
    model : Model, nn.Module, str or path
        What ``sonde.load`` gives or takes; ``"-"`` reads feature arrays from the file ``data``, or
        a table's columns of numbers alone; the
        folder of a store reads the rows in it, without ``data``.
    data : str, path or iterable
        A path, a data set's name, ``sonde:digits/test``, or any re-iterable of model inputs; none
        where ``sites`` are weights.
    sites : str, Site or sequence, default="auto"
        Patterns such as ``"layers.*.mlp"`` or ``"blocks"``; "auto" is the stream after every block.
        ``|reducer`` after a pattern reads its sites by another reducer. ``blocks:heads`` reads
        inside attentions, ``layers.*.mlp.down_proj:weight`` parameters.
    reducer : str or Reducer, default="auto"
        How outputs become rows: mean, last, cls, tokens, patches or flat; "positions" is a row for
        each token (special ones too) or patch where a site has any, else as "auto".
    batch_size : int or "auto", default="auto"
        Number of examples in a batch; ``auto`` is chosen by the size of the model.
    objective : str, callable or None, default=None
        ``kl_uniform``, ``max_logit``, ``nll`` or ``(outputs, batch) -> scalar``: its gradient at
        the sites becomes the column ``grad``.
    further : sequence of str or Reducer, default=()
        More reducers of the same sites in the same forward, keyed ``site|reducer``.
    processor : object, optional
        Tokenizer or image processor of a live module.
    keep_special : bool, default=False
        Keep special tokens in ``tokens`` and ``mean``.
    logits : bool, str or None, default=None
        Whether batches carry the model's logits, or which of its outputs holds them; None asks for
        them if the model is a classifier. True takes an output by its form alone.
    seed : int, default=0
        Key of the hash of rows.
    perturb : Perturbation, dict of its parameters, or None, default=None
        A small step of floating-point inputs: the logits after it become the column
        ``perturbed_logits``.
    generate : str, mapping or None, default=None
        Data are prompts: the model continues them, and prompts are read with their continuations.
        Takes the options of ``generate`` of transformers, as ``{"max_new_tokens": 128}`` or
        ``"max_new_tokens=128,num_beams=4"``; sampling is keyed by ``seed``.
    axes : str or sequence of str, default=()
        A word for each axis of an output where that cannot be told, as in an MLP-Mixer with as many
        patches as channels: ``"row patch dim"``, or ``"blocks.*=row patch dim"`` for some modules.
        The words are row, pos (tokens), patch, h w (space), t, and dim (features).
    check : bool, default=True
        Feed the first examples twice, in another order and under another random seed, before the
        stream is iterated, fitted or scored, and warn where their rows differ.
    sinks : str, default="auto"
        Tokens with massive states, which ``mean`` and every fit leave out: ``first``
        (the first token of a text), ``special``, both with a comma, or ``keep`` to leave nothing
        out; "auto" finds them from the first texts.
    engine : {"transformers", "vllm"}, default="transformers"
        What runs the tokens of a language model that is named by its folder. A loaded model keeps
        its engine.
    **options
        Named options of ``sonde.data.open_inputs``: ``max_length``, ``long``, ``limit``,
        ``text_column``, ``label_column`` and so on.

    Returns
    -------
    Stream

    Examples
    --------
    >>> stream = read("sonde:digits", "sonde:digits/test", limit=64)
    >>> next(iter(stream)).rows[stream.schema[0].key].shape[0]
    64
    """
    step = Perturbation.from_json(perturb) if isinstance(perturb, dict) else perturb
    if isinstance(model, str | Path) and is_store(to_path(model)):
        asked = {"objective": objective, "keep_special": keep_special or None}
        asked |= {"logits": logits or None, "perturb": None if step is None else step.json()}
        named = {"batch_size": batch_size, "seed": seed, "processor": processor}
        named |= {"further": tuple(further), "generate": generate, "axes": axes, "sinks": sinks}
        named |= options
        return open_store(model, data, sites, reducer, asked, named)
    if reads_weights(sites):
        asked = {"objective": objective, "generate": generate, "further": tuple(further)}
        asked |= {"reducer": reducer, "perturb": step, "axes": axes, "sinks": sinks, **options}
        return _weights(model, data, sites, seed, asked)
    if data is None:
        raise InputError(f"read: expected data for the model, or a store; {model} is not a store.")
    if isinstance(model, Path):
        model = str(model)
    if isinstance(model, str) and model == ARRAYS and is_table(data):
        model = table_model()
        logits = logits or False
    if isinstance(model, str) and model == ARRAYS:
        if objective is not None or perturb is not None:
            raise InputError("read: feature arrays have no gradient. Pass a model, not '-'.")
        if generate is not None:
            raise InputError("read: feature arrays cannot generate text. Pass a model, not '-'.")
        options |= {"reducer": reducer, "further": tuple(further), "batch_size": batch_size}
        options |= {"processor": processor, "keep_special": keep_special, "logits": logits}
        options |= {"axes": axes, "sinks": sinks}
        return _arrays(data, sites, seed, **options)
    if isinstance(model, str):
        named = [value for name, value in options.items() if name.endswith("_column")]
        check_data(data, named, bool(options.get("skip_bad")))
    _check_options(options)
    live = _loaded(model, processor, engine)
    wants_logits = live.task in WITH_LOGITS if logits is None else bool(logits)
    if isinstance(generate, str):
        generate = parse_settings(generate)
    settings = None if generate is None else settings_of(generate)
    options |= {"batch_size": batch_size, "logits": wants_logits, "seed": seed}
    inputs = _opened(live, data, {**_room(settings or {}), **options})
    live = reader_of(live, inputs)
    stream = live_stream(
        live,
        inputs if settings is None else _continued(live, inputs, settings, seed),
        sites,
        reducer,
        further=further,
        objective=objective,
        keep_special=keep_special,
        logits=wants_logits,
        logits_output=logits if isinstance(logits, str) else None,
        logits_asked=bool(logits),
        seed=seed,
        perturb=step,
        axes=axes,
        check=check,
        sinks=sinks,
    )
    return replace(stream, label_check=numbers_outputs)


def _loaded(model: Any, processor: Any, engine: str) -> Model:
    """Return the model; a loaded one keeps its engine."""
    if engine != "transformers" and isinstance(model, Model | nn.Module):
        raise InputError(
            f"read: expected engine={engine!r} with the name of a model, got {model!r}. Load it "
            f"with sonde.load(name, engine={engine!r})."
        )
    is_loaded = isinstance(model, Model)
    return model if is_loaded else load(model, processor=processor, engine=engine)


def _opened(live: Model, data: Any, options: dict[str, Any]) -> ItemInputs:
    """Return the data as inputs; raise with a hint if a table is given without a model."""
    try:
        return open_inputs(live, data, **options)
    except InputError as error:
        if not isinstance(live.module, TableAlone):
            raise
        raise InputError(
            f"read: without a model, expected a table of numbers or arrays (.npz), got {data}: "
            f"{error} Otherwise, name a model that reads this data."
        ) from None


def reads_weights(sites: str | Site | Sequence[str | Site]) -> bool:
    """Return whether a site is a parameter, which needs no data."""
    several = [sites] if isinstance(sites, str | Site) else list(sites)
    return any(port_of(pattern) == WEIGHT for pattern in several)


def _weights(
    model: Any,
    data: Any,
    sites: str | Site | Sequence[str | Site],
    seed: int,
    asked: Mapping[str, Any],
) -> Stream:
    """Return parameters as rows; raise if data or options for states are given."""
    if typed := _typed(asked):
        raise InputError(
            f"read: weights are read unchanged: leave out {', '.join(typed)}, which only "
            "states can have."
        )
    if data is not None:
        raise InputError("read: weights are read without data, got some. Leave the data out.")
    live = model if isinstance(model, Model | nn.Module) else load(str(model))
    return weight_stream(live, sites, seed=seed)


def _check_options(options: dict[str, Any]) -> None:
    """Raise if no kind of data accepts an option.

    Raises
    ------
    InputError
        With similar names, or with where else to give the option.
    """
    names = [*inspect.signature(open_inputs).parameters][2:]
    of_this = [*inspect.signature(read).parameters]
    for name in options:
        if name not in names or name in OF_GENERATION:
            elsewhere = SAID_ELSEWHERE.get(name) or near(name, [*of_this, *names])
            raise InputError(f"read: there is no option {name!r}.{elsewhere}")


def _arrays(
    path: str | Path,
    sites: str | Site | Sequence[str | Site],
    seed: int,
    limit: int | None = None,
    **options: Any,
) -> Stream:
    """Return the rows of a file of feature arrays, or raise if an option cannot apply to arrays."""
    typed = _typed(options)
    if typed:
        raise InputError(
            f"read: {path} is a file of feature arrays, which are read unchanged: leave out "
            f"{', '.join(typed)}. Its labels, groups and ids are the arrays called label, group "
            "and id."
        )
    patterns = [sites] if isinstance(sites, str | Site) else list(sites)
    names = [] if sites == AUTO else [str(p).removesuffix(":out") for p in patterns]
    return open_arrays(path, seed, limit=limit, sites=names)


def _room(settings: Mapping[str, Any]) -> dict[str, int]:
    """Return the new tokens and beams that batches need room for; invalid settings are ignored."""
    named = {"new_tokens": settings.get("max_new_tokens"), "beams": settings.get("num_beams")}
    return {name: n for name, n in named.items() if isinstance(n, int) and n > 0}


def _continued(
    model: Model, prompts: ItemInputs, settings: Mapping[str, Any], seed: int
) -> ReplayInputs:
    """Return prompts followed by text that the model generates; raise if one is too long."""
    if prompts.listing.n_chunked:
        raise InputError(
            f"read: {prompts.listing.n_chunked:,} prompts are longer than the context of the "
            "model, and a prompt cannot be split into chunks. Pass long='truncate' (--long "
            "truncate), or shorter prompts."
        )
    context, new = context_of(model), settings.get("max_new_tokens")
    longest = int(prompts.listing.length.max(initial=0))
    if context is not None and isinstance(new, int) and longest + new > context:
        raise InputError(
            f"read: expected prompts and {new} new tokens within the context of {context} "
            f"tokens, got {f'a prompt of {longest} tokens' if longest else 'longer prompts'}. "
            f"Pass max_length={max(1, context - new)} with long='truncate' (--max-length, "
            "--long), or generate fewer tokens."
        )
    return replay(model, prompts, seed=seed, **settings)


AS_IT_IS = ("auto", None, False, 0, ())


def _typed(options: Mapping[str, Any], seeds: tuple[int, ...] = (0,)) -> list[str]:
    return [n for n, v in options.items() if v not in (seeds if n == "seed" else AS_IT_IS)]


def open_store(
    place: str | Path,
    data: Any,
    sites: str | Site | Sequence[str | Site],
    reducer: str | Reducer,
    asked: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Store:
    """Return the stream of a store; raise for options that need a model.

    Parameters
    ----------
    place : path
    data : object
        Must be None: a store brings its data.
    sites, reducer
        Which of its rows.
    asked : mapping
        How the rows must have been read; None is not checked.
    options : mapping
        Options of a reading, which must stand at their defaults.

    Raises
    ------
    InputError
        Naming what a store cannot do.
    StoreError
        If the store is damaged, unfinished, or lacks a file.
    """
    store = Store(place, checked=True)
    require_alone(store, str(place), data, options)
    identity = store.identity()
    for name, value in asked.items():
        if value is not None and name in identity and identity[name] != value:
            raise InputError(
                f"read: the rows of {place} were read with {name}={identity[name]!r}, but "
                f"{value!r} is needed. Read the model again with {name}={value!r}."
            )
    store.check_files()
    return store.select(sites if isinstance(sites, str | Site) else list(sites), reducer)


def require_alone(stream: Stream, name: str, data: Any, options: Mapping[str, Any]) -> None:
    """Raise if data or reading options are given for rows that are already read.

    Raises
    ------
    InputError
        Naming the data or options that are given besides.
    """
    kind = "store" if isinstance(stream, Store) else "stream"
    if data is not None and not (isinstance(data, str) and not data):
        got = data if isinstance(data, str | Path) else type(data).__name__
        raise InputError(
            f"read: {name} is a {kind} of rows that contains its data, got {got} in addition. "
            f"Leave DATA out, or name the model instead of the {kind}."
        )
    typed = _typed(options, (0, stream.seed))
    if typed:
        raise InputError(
            f"read: {name} is a {kind} of rows, which were already read: leave out "
            f"{', '.join(typed)}, or read the model again with these options."
        )


def text_columns(stream: Stream) -> tuple[str, ...]:
    """Return the columns of the texts that a live stream reads.

    Empty for other inputs, and if the texts have more than 256 MiB together.
    """
    if not (isinstance(stream, LiveStream) and isinstance(stream.inputs, ItemInputs)):
        return ()
    inputs = stream.inputs
    is_text = inputs.encoder.kind == "text"
    return inputs.layout.inputs if is_text and inputs.listing.size.sum() <= MOST_TEXT else ()


def chosen_columns(stream: Stream, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return columns of the data behind a live stream, one value per example in stream order.

    Raises
    ------
    InputError
        If the data have no such column.
    """
    if not names:
        return {}
    if not (isinstance(stream, LiveStream) and isinstance(stream.inputs, ItemInputs)):
        raise InputError("read: expected a model and a table of data to take columns from.")
    inputs = stream.inputs
    wanted = {int(row) for row in inputs.listing.row}
    values_of: dict[str, dict[int, Any]] = {name: {} for name in names}
    for number, row in enumerate(inputs.source.rows()):
        if number not in wanted:
            continue
        for name in names:
            if name not in row:
                raise InputError(
                    f"{inputs.source.where(number)}: expected the column {name!r}, got only "
                    f"{', '.join(row)}.{near(name, row)}"
                )
            values_of[name][number] = row[name]
    return {
        name: [values[int(r)] for r in inputs.listing.row] for name, values in values_of.items()
    }
