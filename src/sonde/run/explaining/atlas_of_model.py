"""Add to an atlas the facts that need the model: texts of rows, written tokens, clamped runs."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import SondeError
from sonde.data.pieces import texts_of
from sonde.explain import Dictionary, NeuronLens, NeuronLensResult
from sonde.run.explaining.atlas import Atlas, atlas_document
from sonde.run.explaining.clamping import Clamped, clamp_units
from sonde.run.explaining.seen_rows import seen_rows
from sonde.tap.gradients.losses import one_of
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.blocks import block_paths
from sonde.tap.streams.live import LiveStream
from sonde.tap.streams.weight_stream import matrix_of

EXAMPLES = 4


def model_atlas(
    atlas: Atlas,
    stream: LiveStream,
    *,
    model: str,
    data: str,
    dictionary: Dictionary | None = None,
    dictionary_file: str = "",
    loss: Mapping[str, Any] | None = None,
    n_clamped: int = 256,
    shown: bool = True,
) -> dict[str, Any]:
    """Return the document of an atlas of a live model's units.

    Parameters
    ----------
    atlas : Atlas
    stream : LiveStream
        The stream that the atlas was fitted on.
    model, data : str
        As they were typed.
    dictionary : Dictionary, optional
        The dictionary whose features the atlas shows; ``dictionary_file`` is the path as typed.
    loss : mapping, optional
        The loss that the dictionary recovers.
    n_clamped : int, default=256
        Number of units, from the first, that are held at their largest value.
    shown : bool, default=True
        Whether texts and pictures are put in.
    """
    rows = {
        (*one.ids, one.position)
        for unit in range(atlas.n_units)
        for one in atlas.exemplars.of(unit)
    }
    seen, pictures = seen_rows(stream.model, stream.inputs, rows, len(stream), shown=shown)
    lens = _lens(stream, dictionary)
    clamped = _clamped(atlas, stream, dictionary, n_clamped)
    return atlas_document(
        atlas,
        model=model,
        data=data,
        dictionary=dictionary_file or None,
        loss=loss,
        lens=lens,
        token_names=_answers(stream, lens, clamped),
        clamped=clamped,
        seen=seen,
        inputs=pictures,
    )


def _lens(stream: LiveStream, dictionary: Dictionary | None) -> NeuronLensResult | None:
    """Return the tokens that units promote, or None if the site does not write to the stream."""
    (site,) = (s.site for s in stream.schema)
    if stream.model.task != "causal":
        return None
    module = ModuleNames(stream.model.module).modules[site.path]
    try:
        units = torch.eye(stream.schema[0].dim) if dictionary is None else dictionary.decoder
        if site.port == "in":
            writes = matrix_of(module).detach().T
            return NeuronLens(side="writes").of(stream.model, units.to(writes) @ writes)
        is_stream = site.path in block_paths(ModuleNames(stream.model.module), None)
        return NeuronLens().of(stream.model, units) if is_stream else None
    except SondeError:  # not a layer that writes, or the head does not read the stream alone
        return None


def _clamped(
    atlas: Atlas, stream: LiveStream, dictionary: Dictionary | None, n: int
) -> Clamped | None:
    units = list(range(min(n, atlas.n_units)))
    if not units:
        return None
    level = torch.as_tensor(atlas.exemplars.value)[units]
    rows = (one_of(raw, i) for raw in stream.inputs.batches(0, EXAMPLES) for i in range(len(raw)))
    examples = list(itertools.islice(rows, EXAMPLES))
    moved = None if dictionary is None else partial(_with_features, dictionary)
    try:
        return clamp_units(stream.model, examples, stream.schema[0], units, level, moved)
    except SondeError:  # a model without logits, or a site that cannot be gone on from
        return None


def _with_features(
    dictionary: Dictionary, rows: Tensor, features: Sequence[int], level: Tensor
) -> Tensor:
    """Return a copy of the rows for each feature, with only this feature set to its level."""
    chosen = list(features)
    z = dictionary.encode(rows)[:, chosen].T
    by = level.to(rows)[:, None] - z
    return rows + by[:, :, None] * dictionary.decoder[chosen].to(rows)[:, None, :]


def _answers(
    stream: LiveStream, lens: NeuronLensResult | None, clamped: Clamped | None
) -> dict[int, str]:
    """Return the names of the classes, or the texts of the tokens that the atlas shows."""
    if stream.model.task != "causal":
        return {i: str(name) for i, name in enumerate(stream.label_names)}
    used: set[int] = set()
    for tokens in (lens and lens.top, lens and lens.bottom, clamped and clamped.up):
        used |= set() if tokens is None else set(tokens.flatten().tolist())
    used |= set() if clamped is None else set(clamped.down.flatten().tolist())
    return {i: texts_of([i], stream.model.processor)[0] for i in sorted(used)}
