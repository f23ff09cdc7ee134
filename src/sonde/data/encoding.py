"""Which encoder a model and a layout need: context, vocabulary, channels, patches, batch size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data._checkpoints import FACTORY
from sonde.data.columns import Layout, Reads
from sonde.data.encoder import ANY, Encoder, forward_names, takes
from sonde.data.images import ImageEncoder
from sonde.data.listing import Listing
from sonde.data.numbers import NumbersEncoder
from sonde.data.processors import (
    PillowProcessor,
    is_image_processor,
    is_tokenizer,
    no_recipe,
)
from sonde.data.span import SpanEncoder
from sonde.data.tensors import CallableEncoder, FeatureEncoder, TensorEncoder
from sonde.data.text import Decoder, Long, TextEncoder, Vocabulary, is_byte_level
from sonde.data.trajectory import TrajectoryEncoder

LARGEST_BATCH = 64
BATCH_BYTES = 2**30
NO_LIMIT = 10**9


@dataclass(frozen=True)
class ImageFlags:
    """What the user says about images."""

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, size: Any, mean: Any, std: Any) -> "ImageFlags":
        """Return the flags with single numbers spread out."""
        pair = (size,) if isinstance(size, int) else None if size is None else tuple(size)
        pair = pair * 2 if pair is not None and len(pair) == 1 else pair
        if pair is not None and (len(pair) != 2 or min(pair) < 1):
            raise InputError(
                f"open_inputs: expected image_size as one or two numbers, got {size!r}."
            )
        numbers = [None if v is None else _numbers(v) for v in (mean, std)]
        return cls(pair, *numbers)

    @property
    def any(self) -> bool:
        """Whether one was given."""
        return self != ImageFlags()


def _numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)


def reads_of(model: Model, images: ImageFlags) -> Reads:
    """Return what kind of item a model reads."""
    if is_tokenizer(model.processor):
        return "text"
    if is_image_processor(model.processor) or images.any:
        return "image"
    if model.processor is not None:
        if hasattr(model.processor, "tokenizer") or not callable(model.processor):
            raise InputError(
                "load: expected processor= as a tokenizer, an image processor or a function of "
                "one item, "
                f"got {type(model.processor).__name__}. Pass its tokenizer or image_processor."
            )
        return "callable"
    if model.config is None:
        return "tensor"
    return "image" if _main_input(model.module) == "pixel_values" else "text"


def encoder_for(
    model: Model,
    layout: Layout,
    base: Path,
    images: ImageFlags,
    max_length: int | None,
    long: Long,
) -> Encoder:
    """Return the encoder of a layout for a model.

    Raises
    ------
    InputError
        If the model lacks a tokenizer or a recipe for images.
    """
    names = forward_names(model.module)
    if layout.kind not in ("tokens", "tensor", "features", "numbers"):
        _refuse_beside(layout, names, model)
    if layout.kind == "item":
        return CallableEncoder(model.processor, layout.inputs[0], base, layout.image)
    if layout.kind == "numbers" and not ("kwargs" in names or set(layout.inputs) <= names):
        return NumbersEncoder(layout.inputs, "x", names, _dtype(model.module))
    if layout.kind in ("features", "numbers"):
        _known_arguments(layout.inputs, names, model)
        return FeatureEncoder(layout.inputs, _dtype(model.module))
    if layout.kind == "tensor":
        more = tuple(n for n in layout.beside if n in names)
        if more:
            _known_arguments(layout.inputs, names, model)
            return FeatureEncoder((*layout.inputs, *more), _dtype(model.module))
        main = _main_input(model.module) if model.config is not None else "x"
        return TensorEncoder(layout.inputs[0], main, names, _dtype(model.module))
    if layout.kind == "image":
        return _image_encoder(model, layout, base, images, names)
    if layout.kind == "trajectory":
        plain = replace(layout, kind="text", inputs=layout.inputs[:1])
        text = _text_encoder(model, plain, names, max_length, long)
        return TrajectoryEncoder(text, *layout.inputs[1:], label=layout.label)
    if layout.span is not None:
        plain = replace(layout, kind="text")
        text = _text_encoder(model, plain, names, max_length, long)
        return SpanEncoder(text, layout.span, layout.span_columns)
    return _text_encoder(model, layout, names, max_length, long)


def context_of(model: Model) -> int | None:
    """Return the most tokens that a model reads at once, or None where nothing says so."""
    found = []
    config = getattr(model.config, "text_config", model.config)
    length = getattr(config, "max_position_embeddings", None)
    if isinstance(length, int) and length > 0:
        found.append(length - _position_offset(model.module))
    limit = getattr(model.processor, "model_max_length", None)
    if isinstance(limit, int) and 0 < limit < NO_LIMIT:
        found.append(limit)
    return min(found, default=None)


def batch_size_for(
    model: Model,
    listing: Listing,
    encoder: Encoder,
    logits: bool,
    new_tokens: int = 0,
    beams: int = 1,
) -> int:
    """Return 64, halved until batch x length x (4 hidden + vocabulary) x bytes is at most 1 GiB.

    A text classifier without a padding token finds the last token only in batches of one. The
    length is a bound of the longest example: the context, or less if every text is shorter.
    """
    config = getattr(model.config, "text_config", model.config)
    if model.task == "classifier" and getattr(config, "pad_token_id", None) is None:
        return 1
    hidden = getattr(config, "hidden_size", None)
    if not isinstance(hidden, int):
        return LARGEST_BATCH
    length = beams * (_longest(model, listing, encoder) + new_tokens)
    vocabulary = getattr(config, "vocab_size", 0) if logits and model.task == "causal" else 0
    width = getattr(_dtype(model.module), "itemsize", 4)
    size = LARGEST_BATCH
    while size > 1 and size * length * (4 * hidden + (vocabulary or 0)) * width > BATCH_BYTES:
        size //= 2
    return size


def _longest(model: Model, listing: Listing, encoder: Encoder) -> int:
    if isinstance(encoder, TrajectoryEncoder | SpanEncoder):
        return int(listing.length.max())
    if isinstance(encoder, TextEncoder):
        known = int(listing.length.max())
        bound = int(listing.size[listing.length == 0].max(initial=0)) + 8
        return max(known, min(bound, encoder.max_length or bound))
    image, patch = (
        getattr(model.config, "image_size", None),
        getattr(model.config, "patch_size", None),
    )
    if isinstance(image, int) and isinstance(patch, int) and patch > 0:
        return (image // patch) ** 2 + 1
    return 1


def _text_encoder(
    model: Model, layout: Layout, names: frozenset[str], max_length: int | None, long: Long
) -> TextEncoder:
    tokenizer = model.processor if is_tokenizer(model.processor) else None
    if tokenizer is None and layout.kind != "tokens":
        raise InputError(
            f"{model.name or 'the model'} came without a tokenizer, and column "
            f"{layout.inputs[0]!r} holds "
            "texts. Give rows with input_ids, put its tokenizer beside it, or pass processor= in "
            f"Python; {FACTORY}."
        )
    if layout.kind == "messages" and not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{model.name or 'the model'} has no chat template for column {layout.inputs[0]!r}. "
            "Name a column of plain texts (--text-column)."
        )
    context = context_of(model)
    if max_length is not None:
        context = max_length if context is None else min(context, max_length)
    vocabulary = _vocabulary(model, tokenizer)
    others, unread = _beside_tokens(layout, names) if layout.kind == "tokens" else ((), ())
    around = len(vocabulary.before) + len(vocabulary.after)
    if context is not None and context <= around:
        raise InputError(
            f"open_inputs: max_length={context} leaves no room beside {around} special tokens."
        )
    return TextEncoder(
        tokenizer=tokenizer,
        inputs=layout.inputs,
        kind=layout.kind,
        names=names,
        vocabulary=vocabulary,
        max_length=context,
        long=long,
        decoder=_decoder(model, layout, names),
        others=others,
        unread=unread,
        dtype=_dtype(model.module),
        origin={"tokenizer": None if tokenizer is None else _hash_of(tokenizer)},
    )


def _vocabulary(model: Model, tokenizer: Any) -> Vocabulary:
    size = getattr(getattr(model.config, "text_config", model.config), "vocab_size", None)
    given = getattr(model.config, "pad_token_id", None)
    pad = given if isinstance(given, int) and given >= 0 else 0
    if tokenizer is None:
        return Vocabulary(pad=pad, size=size)
    own = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    candidates = (given, *own) if model.task == "classifier" else (own[0], given, own[1])
    pad = next((i for i in candidates if isinstance(i, int) and i >= 0), 0)
    special = set(tokenizer.all_special_ids)
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        special.discard(tokenizer.unk_token_id)
    ids = tokenizer("a", verbose=False)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    at = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
    return Vocabulary(
        tuple(ids[:at]),
        tuple(ids[at + len(plain) :]),
        frozenset(special),
        pad,
        size,
        is_byte_level(tokenizer),
    )


def _beside_tokens(
    layout: Layout, names: frozenset[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns beside token ids that ``forward`` takes, and those that it does not."""
    beside = [name for name in layout.beside if name != "attention_mask"]
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
    if layout.kind == "tokens" and "decoder_input_ids" in layout.beside:
        raise InputError(
            f"{model.name or 'the model'}: the column 'decoder_input_ids' is not read, the decoder "
            "gets a target text or its start token. Leave it out, and name the column of the "
            "target (--target-column)."
        )
    names_of_start = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    candidates = (getattr(model.config, name, None) for name in names_of_start)
    start = next((i for i in candidates if isinstance(i, int)), None)
    if start is None:
        raise InputError(
            f"{model.name or 'the model'}: its config names no decoder_start_token_id, "
            "bos_token_id or "
            "pad_token_id, so the decoder has no start token. Set one in config.json."
        )
    return Decoder(start, layout.target)


def _image_encoder(
    model: Model, layout: Layout, base: Path, images: ImageFlags, names: frozenset[str]
) -> ImageEncoder:
    processor = _image_processor(model, images)
    return ImageEncoder(
        processor,
        layout.inputs[0],
        base,
        _channels(model, processor),
        names,
        _patch(model.config),
        _dtype(model.module),
        origin={"processor": _recipe(processor)},
    )


def _channels(model: Model, processor: Any) -> int:
    """Return the channels that the model reads: as configured, or of its first convolution."""
    name = model.name or "the model"
    means = len(processor.mean) if isinstance(processor, PillowProcessor) else 3
    channels = getattr(model.config, "num_channels", None) or _first_channels(model.module)
    channels = channels or means
    if channels not in (1, 3):
        raise InputError(
            f"{name} reads {channels} channels; images give 1 (grey) or 3 (RGB). "
            "Pass arrays 'x' instead."
        )
    if isinstance(processor, PillowProcessor) and means not in (1, channels):
        raise InputError(
            f"{name}: expected image_mean and image_std (--image-mean --image-std) with one number "
            f"or one for each of its {channels} channels, got {means}."
        )
    return channels


def _first_channels(module: nn.Module) -> int | None:
    found = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    return None if found is None else found.in_channels


def _image_processor(model: Model, images: ImageFlags) -> Any:
    processor = model.processor if is_image_processor(model.processor) else None
    if processor is None:
        given = {"mean": images.mean, "std": images.std}
        missing = [name for name, value in given.items() if value is None]
        if images.mean is None or images.std is None:
            raise no_recipe(model.name or "the model", missing)
        size = getattr(model.config, "image_size", None)
        own = (size, size) if isinstance(size, int) else None
        return PillowProcessor(images.size or own, mean=images.mean, std=images.std)
    if not images.any:
        return processor
    if not isinstance(processor, PillowProcessor):
        processor = PillowProcessor.from_config(processor.to_dict())
    changes = {"mean": images.mean, "std": images.std}
    if images.size is not None:
        changes |= {"size": images.size, "crop": None}
    return replace(processor, **{k: v for k, v in changes.items() if v is not None or k == "crop"})


def _recipe(processor: Any) -> str:
    if isinstance(processor, PillowProcessor):
        return repr(processor)
    return blake2b(processor.to_json_string().encode(), digest_size=16).hexdigest()


def _patch(config: Any) -> tuple[int, int] | None:
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int):
        return patch, patch
    if isinstance(patch, list | tuple) and len(patch) == 2:
        return int(patch[0]), int(patch[1])
    return None


def _hash_of(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _known_arguments(inputs: Sequence[str], names: frozenset[str], model: Model) -> None:
    strange = [n for n in inputs if n not in names]
    if strange and ANY not in names and "kwargs" not in names:
        raise InputError(
            f"{model.name or 'the model'}.forward has no argument {strange[0]!r}, only "
            f"{', '.join(sorted(names))}. Name the items' entries after its arguments."
        )


def _refuse_beside(layout: Layout, names: frozenset[str], model: Model) -> None:
    found = next((name for name in layout.beside if name in names), None)
    if found is not None:
        raise InputError(
            f"{model.name or 'the model'}.forward has an argument {found!r}, and the data have a "
            f"column of that name beside {layout.inputs[0]!r}, with which it cannot be read. "
            f"Give items of tensors (input_ids or pixel_values, and {found!r}), or leave the "
            "column out."
        )


def _main_input(module: nn.Module) -> str:
    return getattr(module, "main_input_name", "x")


def _dtype(module: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _position_offset(module: nn.Module) -> int:
    for name, child in module.named_modules():
        if name.endswith("embeddings.position_embeddings") and isinstance(child, nn.Embedding):
            return 0 if child.padding_idx is None else child.padding_idx + 1
    return 0
