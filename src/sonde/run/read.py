"""``sonde.read``: a model and data, as typed by a user, become one lazy stream of hidden states."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.perturbation import Perturbation
from sonde.core.site import Reducer, Site
from sonde.core.stream import Stream
from sonde.data import check_data, load, open_arrays, open_inputs
from sonde.tap import live_stream

ARRAYS = "-"
AUTO = "auto"
WITH_LOGITS = ("classifier", "image_classifier", "tensor")


def read(
    model: Model | nn.Module | str,
    data: Any,
    sites: str | Site | Sequence[str | Site] = "auto",
    reducer: str | Reducer = "auto",
    batch_size: int | str = "auto",
    objective: str | Callable[..., Any] | None = None,
    *,
    further: Sequence[str | Reducer] = (),
    processor: Any = None,
    keep_special: bool = False,
    logits: bool | None = None,
    seed: int = 0,
    perturb: Perturbation | dict[str, Any] | None = None,
    **options: Any,
) -> Stream:
    """Return the stream of a model's hidden states over data. Nothing runs before it is iterated.

    Parameters
    ----------
    model : Model, nn.Module or str
        What ``sonde.load`` gives or takes; ``"-"`` reads feature arrays from the file ``data``.
    data : str, path or iterable
        A path, a data set's name, ``sonde:digits/test``, or any re-iterable of model inputs.
    sites : str, Site or sequence, default="auto"
        Patterns such as ``"layers.*.mlp"`` or ``"blocks"``; "auto" is the stream after every block.
        ``|reducer`` behind a pattern reads its sites by another reducer.
    reducer : str or Reducer, default="auto"
        How outputs become rows: mean, last, cls, tokens, patches or flat.
    batch_size : int or "auto", default="auto"
    objective : str, callable or None, default=None
        ``kl_uniform``, ``max_logit``, ``nll`` or ``(outputs, batch) -> scalar``: its gradient at
        the sites becomes the column ``grad``.
    further : sequence of str or Reducer, default=()
        More reducers of the same sites in the same forward, keyed ``site|reducer``.
    processor : object, optional
        Tokenizer or image processor of a live module.
    keep_special : bool, default=False
        Keep special tokens in ``tokens`` and ``mean``.
    logits : bool or None, default=None
        Whether batches carry the model's logits; None where the model is a classifier.
    seed : int, default=0
        Key of the hash of rows.
    perturb : Perturbation, dict of its parameters, or None, default=None
        A small step of floating-point inputs: the logits after it become the column
        ``perturbed_logits``.
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
    if isinstance(model, str) and model == ARRAYS:
        if objective is not None or perturb is not None:
            raise InputError("read: feature arrays have no gradient. Pass a model, not '-'.")
        patterns = [sites] if isinstance(sites, str | Site) else list(sites)
        names = [] if sites == AUTO else [str(p).removesuffix(":out") for p in patterns]
        return open_arrays(data, seed, limit=options.get("limit"), sites=names)
    if isinstance(model, str):
        named = [value for name, value in options.items() if name.endswith("_column")]
        check_data(data, named, bool(options.get("skip_bad")))
    live = model if isinstance(model, Model) else load(model, processor=processor)
    wants_logits = live.task in WITH_LOGITS if logits is None else logits
    inputs = open_inputs(
        live, data, batch_size=batch_size, logits=wants_logits, seed=seed, **options
    )
    return live_stream(
        live,
        inputs,
        sites,
        reducer,
        further=further,
        objective=objective,
        keep_special=keep_special,
        logits=wants_logits,
        seed=seed,
        perturb=Perturbation.from_json(perturb) if isinstance(perturb, dict) else perturb,
    )
