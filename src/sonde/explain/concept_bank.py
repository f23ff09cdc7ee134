"""Rows of images and of texts about classes, from a model that puts both into one space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data import open_inputs
from sonde.data.towers import has_two_towers, reader_of
from sonde.tap import place_of


@final
@dataclass(frozen=True, eq=False)
class ConceptBank:
    """Texts about classes as rows in the space of a model's images, for ``ConceptMarginal``.

    Parameters
    ----------
    rows : Float[Tensor, "concept dim"]
        A row for each concept, in the space of the images.
    owner : Int[Tensor, "concept"]
        Number of the class in ``classes``.
    texts, classes : tuple of str
        The text of each concept, and the class that it is about.
    """

    rows: Float[Tensor, "concept dim"]
    owner: Int[Tensor, "concept"]
    texts: tuple[str, ...]
    classes: tuple[str, ...]


def concept_bank(
    model: Model, texts: Mapping[str, Sequence[str]], batch_size: int = 64
) -> ConceptBank:
    """Return the text features of every class's texts, as the bank of a ``ConceptMarginal``.

    Parameters
    ----------
    model : Model
        With a tower for images and one for texts, such as CLIP or SigLIP.
    texts : mapping of str to sequence of str
        Class to its texts: prompts, attributes, other names.
    batch_size : int, default=64
        Number of texts that run at once.

    References
    ----------
    chbr2024concepts
    """
    empty = [name for name, own in texts.items() if not own]
    if not texts:
        raise InputError("concept_bank: expected the texts of at least one class, got none.")
    if empty:
        raise InputError(
            f"concept_bank: expected a text for every class, got none for {empty[:5]}."
        )
    every = [text for own in texts.values() for text in own]
    owner = torch.repeat_interleave(torch.tensor([len(own) for own in texts.values()]))
    rows = shared_rows(model, [{"text": text} for text in every], batch_size)
    return ConceptBank(rows, owner, tuple(every), tuple(texts))


@torch.no_grad()
def shared_rows(
    model: Model, items: Sequence[Mapping[str, Any]], batch_size: int = 64
) -> Float[Tensor, "row dim"]:
    """Return the features of images, or of texts, in the space that both share.

    Parameters
    ----------
    model : Model
        With a tower for images and one for texts.
    items : sequence of mapping
        Each with an ``image``, or each with a ``text``.
    batch_size : int, default=64
        Number of images or texts that run at once.
    """
    kinds = {tuple(sorted({"image", "text"} & set(item))) for item in items}
    if not has_two_towers(model.module) or kinds not in ({("image",)}, {("text",)}):
        raise InputError(
            "shared_rows: expected a model with a tower for images and one for texts, and items "
            f"with an image each or with a text each, got {model.name or 'a model'} of "
            f"{type(model.module).__name__} and items with {sorted(kinds)}."
        )
    inputs = open_inputs(model, [dict(item) for item in items], batch_size=batch_size)
    tower: Any = reader_of(model, inputs).module
    place = place_of(tower, next(iter(inputs.batches(0, 1))))
    parts, order = list[Tensor](), list[int]()
    for batch in inputs.batches(0, len(inputs)):
        args, kwargs = place.call(batch.args, batch.kwargs)
        output = tower(*args, **kwargs)
        parts.append(output if isinstance(output, Tensor) else output.pooler_output)
        order += [int(i) for i in batch.order]
    return torch.cat(parts).cpu()[torch.tensor(order).argsort()]
