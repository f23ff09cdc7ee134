"""Recipe by which a model reads texts: its context, special tokens and decoder."""

from hashlib import blake2b
from typing import Any

from torch import nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data._checkpoints import FACTORY
from sonde.data.columns import Layout
from sonde.data.encoder import takes
from sonde.data.processors import is_tokenizer
from sonde.data.text import DECODER_IDS, DECODER_MASK, Decoder, Long, TextEncoder
from sonde.data.vocabulary import vocabulary_of

NO_LIMIT = 10**9


def text_encoder(
    model: Model,
    layout: Layout,
    names: frozenset[str],
    max_length: int | None,
    long: Long,
    prompt: str | None = None,
) -> TextEncoder:
    """Return the encoder of texts, pairs, chats or token ids for a model.

    ``prompt`` is the column with the beginning of each text that is its prompt.

    Raises
    ------
    InputError
        If the model lacks a tokenizer, a chat template or room for a token.
    """
    tokenizer = model.processor if is_tokenizer(model.processor) else None
    if tokenizer is None and layout.kind != "tokens":
        raise InputError(
            f"{model.name or 'the model'} has no tokenizer, but column {layout.inputs[0]!r} "
            "contains texts. Pass rows with input_ids, save the tokenizer in the model's "
            f"folder, or pass processor= in Python; {FACTORY}."
        )
    if layout.kind == "messages" and not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{model.name or 'the model'} has no chat template for column {layout.inputs[0]!r}. "
            "Name a column of plain texts (--text-column)."
        )
    context = context_of(model)
    if max_length is not None:
        context = max_length if context is None else min(context, max_length)
    vocabulary = vocabulary_of(model, tokenizer)
    decoder = _decoder(model, layout, names)
    others, unread = (), ()
    if layout.kind == "tokens":
        others, unread = _beside_tokens(layout, names, decoder is not None)
    around = len(vocabulary.before) + len(vocabulary.after)
    if context is not None and context <= around:
        raise InputError(
            f"open_inputs: max_length={context} leaves no room for tokens other than {around} "
            "special tokens."
        )
    return TextEncoder(
        tokenizer=tokenizer,
        inputs=layout.inputs,
        kind=layout.kind,
        names=names,
        vocabulary=vocabulary,
        max_length=context,
        long=long,
        decoder=decoder,
        others=others,
        unread=unread,
        masked="attention_mask" in layout.beside,
        prompt=prompt,
        origin={"tokenizer": None if tokenizer is None else tokenizer_hash(tokenizer)},
    )


def context_of(model: Model) -> int | None:
    """Return the largest number of tokens that a model reads at once, or None if unknown."""
    limits = []
    config = getattr(model.config, "text_config", model.config)
    length = getattr(config, "max_position_embeddings", None)
    if isinstance(length, int) and length > 0:
        limits.append(length - _position_offset(model.module))
    tokenizer = getattr(model.processor, "tokenizer", model.processor)
    limit = getattr(tokenizer, "model_max_length", None)
    if isinstance(limit, int) and 0 < limit < NO_LIMIT:
        limits.append(limit)
    return min(limits, default=None)


def _beside_tokens(
    layout: Layout, names: frozenset[str], decodes: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns beside token ids that ``forward`` accepts, and those it does not."""
    own = ("attention_mask", *((DECODER_IDS, DECODER_MASK) if decodes else ()))
    beside = [name for name in layout.beside if name not in own]
    return (
        tuple(name for name in beside if takes(name, names)),
        tuple(name for name in beside if not takes(name, names)),
    )


def _decoder(model: Model, layout: Layout, names: frozenset[str]) -> Decoder | None:
    if model.task != "seq2seq" or "decoder_input_ids" not in names:
        if layout.target is not None:
            raise InputError(
                f"{model.name or 'the model'} has no decoder that reads a target. Leave out "
                "target_column."
            )
        return None
    if layout.kind == "tokens" and DECODER_IDS in layout.beside:
        if layout.target is not None:
            raise InputError(
                f"{model.name or 'the model'}: expected one column for the decoder, got "
                f"{DECODER_IDS!r} and the target {layout.target!r}. Leave one of them out."
            )
        return Decoder(given=True)
    return Decoder(start_token(model), layout.target)


def start_token(model: Model) -> int:
    """Return the first token of the decoder.

    Raises
    ------
    InputError
        If the model's configuration names none.
    """
    names_of_start = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    candidates = (getattr(model.config, name, None) for name in names_of_start)
    start = next((i for i in candidates if isinstance(i, int)), None)
    if start is None:
        raise InputError(
            f"{model.name or 'the model'}: its config names no decoder_start_token_id, "
            "bos_token_id or "
            "pad_token_id, so the decoder has no start token. Set one in config.json."
        )
    return start


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of a tokenizer: its rules and its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _position_offset(module: nn.Module) -> int:
    for name, child in module.named_modules():
        if name.endswith("embeddings.position_embeddings") and isinstance(child, nn.Embedding):
            return 0 if child.padding_idx is None else child.padding_idx + 1
    return 0
