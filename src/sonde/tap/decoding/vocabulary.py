"""Test whether two language models share a vocabulary."""

from typing import Any

from torch import nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model


def check_vocabulary(model: Model | nn.Module, other: Model | nn.Module) -> None:
    """Raise if the sizes or tokenizers of two models imply different vocabularies.

    Raises
    ------
    InputError
        With the sizes, or a token on which the tokenizers differ.
    """
    own, its = _size(model), _size(other)
    advice = "Take models that were trained with one tokenizer."
    if own is not None and its is not None and own != its:
        raise InputError(
            f"Decode: expected models with the same vocabulary, got {own} tokens of "
            f"{_name(model)} and {its} of {_name(other)}. {advice}"
        )
    words, others = _words(model), _words(other)
    if words is None or others is None or words == others:
        return
    token = min(w for w in words.keys() | others.keys() if words.get(w) != others.get(w))
    raise InputError(
        f"Decode: expected models with the same vocabulary, got token {token!r} as number "
        f"{words.get(token)} of {_name(model)} and {others.get(token)} of {_name(other)}. "
        f"{advice}"
    )


def _size(model: Model | nn.Module) -> int | None:
    module = model.module if isinstance(model, Model) else model
    get = getattr(module, "get_output_embeddings", None)
    weight = getattr(get() if callable(get) else None, "weight", None)
    return None if weight is None else len(weight)


def _words(model: Model | nn.Module) -> dict[str, int] | None:
    get: Any = getattr(model.processor, "get_vocab", None) if isinstance(model, Model) else None
    return get() if get is not None else None


def _name(model: Model | nn.Module) -> str:
    return (model.name if isinstance(model, Model) else "") or type(
        model.module if isinstance(model, Model) else model
    ).__name__
