"""Choose the encoder for a model and a layout, and the batch size."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sonde.core.errors import InputError, near
from sonde.core.inputs import Model
from sonde.data.audio_encoding import audio_encoder
from sonde.data.columns import Layout, Reads
from sonde.data.encoder import Encoder, dtype_of, forward_names, takes, tensor_arguments
from sonde.data.image_encoding import ImageFlags, image_encoder
from sonde.data.image_text import ImageTextEncoder
from sonde.data.image_text_encoding import image_text_encoder
from sonde.data.listing import Listing
from sonde.data.numbers import NumbersEncoder
from sonde.data.processors import (
    AUDIO_INPUTS,
    is_feature_extractor,
    is_image_processor,
    is_joint_processor,
    is_tokenizer,
)
from sonde.data.span import SpanEncoder
from sonde.data.tensors import CallableEncoder, FeatureEncoder, TensorEncoder
from sonde.data.text import Long, TextEncoder
from sonde.data.text_encoding import text_encoder
from sonde.data.trajectory import TrajectoryEncoder

LARGEST_BATCH = 64
BATCH_BYTES = 2**30
BY_TOKENIZERS = (
    "attention_mask", "token_type_ids", "special_tokens_mask", "offset_mapping", "length",
    "num_truncated_tokens", "overflow_to_sample_mapping",
)  # fmt: skip


def item_kind(model: Model, images: ImageFlags) -> Reads:
    """Return what kind of item a model reads."""
    if is_tokenizer(model.processor):
        return "text"
    if is_image_processor(model.processor) or images.any:
        return "image"
    if is_feature_extractor(model.processor):
        return "audio"
    if is_joint_processor(model.processor):
        return "image_text"
    if model.processor is not None:
        if hasattr(model.processor, "tokenizer") or not callable(model.processor):
            raise InputError(
                "load: expected processor= as a tokenizer, an image processor, a feature extractor "
                "or a function of one item, "
                f"got {type(model.processor).__name__}. Pass its tokenizer or image_processor."
            )
        return "callable"
    if model.config is None:
        return "tensor"
    main = main_input(model)
    return "image" if main == "pixel_values" else "audio" if main in AUDIO_INPUTS else "text"


def encoder_for(
    model: Model,
    layout: Layout,
    base: Path,
    images: ImageFlags,
    max_length: int | None,
    long: Long,
    prompt: str | None = None,
) -> Encoder:
    """Return the encoder of a layout for a model.

    ``prompt`` is the column with the beginning of each text that is its prompt.

    Raises
    ------
    InputError
        If the model lacks a tokenizer or does not say how to preprocess images.
    """
    names = forward_names(model.module)
    if layout.kind in ("tokens", "tensor"):
        unread = BY_TOKENIZERS if layout.kind == "tokens" else ()
        _known_arguments([n for n in layout.beside if n not in unread], names, model)
    elif layout.kind not in ("features", "numbers"):
        _refuse_beside(layout, names, model)
    if layout.kind == "item":
        return CallableEncoder(model.processor, layout.inputs[0], base, layout.image)
    if layout.kind == "numbers" and not _are_arguments(layout.inputs, names, model):
        dtype = dtype_of(model.module)
        return NumbersEncoder(layout.inputs, "x", names, dtype, unused=layout.unused)
    if layout.kind in ("features", "numbers"):
        _known_arguments(layout.inputs, names, model)
        return FeatureEncoder(layout.inputs)
    if layout.kind == "tensor":
        if layout.beside:
            _known_arguments(layout.inputs, names, model)
            return FeatureEncoder((*layout.inputs, *layout.beside))
        return TensorEncoder(layout.inputs[0], main_input(model), names)
    if is_joint_processor(model.processor) and layout.kind in ("image_text", "image", "text"):
        return image_text_encoder(model, layout, base, names, max_length, long)
    if layout.kind == "image":
        return image_encoder(model, layout, base, images, names)
    if layout.kind == "audio":
        return audio_encoder(model, layout, base, names)
    if layout.kind == "trajectory":
        plain = replace(layout, kind="text", inputs=layout.inputs[:1])
        text = text_encoder(model, plain, names, max_length, long)
        return TrajectoryEncoder(text, *layout.inputs[1:], label=layout.label)
    if layout.span is not None:
        plain = replace(layout, kind="text")
        text = text_encoder(model, plain, names, max_length, long)
        return SpanEncoder(text, layout.span, layout.span_columns)
    return text_encoder(model, layout, names, max_length, long, prompt)


def takes_one(model: Model) -> bool:
    """Return whether a model must read one example at a time, as it cannot find the last token."""
    config = getattr(model.config, "text_config", model.config)
    return model.task == "classifier" and getattr(config, "pad_token_id", None) is None


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
    if takes_one(model):
        return 1
    config = getattr(model.config, "text_config", model.config)
    hidden = getattr(config, "hidden_size", None)
    if not isinstance(hidden, int):
        return LARGEST_BATCH
    length = beams * (_longest(model, listing, encoder) + new_tokens)
    vocabulary = getattr(config, "vocab_size", 0) if logits and model.task == "causal" else 0
    width = getattr(dtype_of(model.module), "itemsize", 4)
    size = LARGEST_BATCH
    while size > 1 and size * length * (4 * hidden + (vocabulary or 0)) * width > BATCH_BYTES:
        size //= 2
    return size


def _longest(model: Model, listing: Listing, encoder: Encoder) -> int:
    if isinstance(encoder, TrajectoryEncoder | SpanEncoder):
        return int(listing.length.max())
    if isinstance(encoder, TextEncoder):
        listed = int(listing.length.max())
        bound = int(listing.size[listing.length == 0].max(initial=0)) + 8
        return max(listed, min(bound, encoder.max_length or bound))
    if isinstance(encoder, ImageTextEncoder):
        return encoder.max_length or 1
    image, patch = (
        getattr(model.config, "image_size", None),
        getattr(model.config, "patch_size", None),
    )
    if isinstance(image, int) and isinstance(patch, int) and patch > 0:
        return (image // patch) ** 2 + 1
    return 1


def _known_arguments(inputs: Sequence[str], names: frozenset[str], model: Model) -> None:
    strange = [n for n in inputs if not takes(n, names)]
    if strange:
        raise InputError(
            f"{model.name or 'the model'}.forward has no argument {strange[0]!r}, only "
            f"{', '.join(sorted(names))}.{near(strange[0], names)} Name the items' entries "
            f"after its arguments, declare what {strange[0]!r} is (--label-column, --id-column, "
            f"--group-column), or leave it out (--ignore-columns {','.join(strange)})."
        )


def _are_arguments(columns: Sequence[str], names: frozenset[str], model: Model) -> bool:
    """Return whether columns of numbers are separate ``forward`` arguments, not one vector.

    A single column may have the name of the first argument by chance, so that name alone does not
    count if other columns are no arguments.
    """
    others = set(list(tensor_arguments(model.module))[1:])
    return "kwargs" in names or set(columns) <= names or bool(others & set(columns))


def _refuse_beside(layout: Layout, names: frozenset[str], model: Model) -> None:
    extra = next((name for name in layout.beside if name in names), None)
    if extra is not None:
        raise InputError(
            f"{model.name or 'the model'}.forward has an argument {extra!r}, and the data have a "
            f"column of that name and a column {layout.inputs[0]!r}; these two columns cannot be "
            f"read together. Give items of tensors (input_ids or pixel_values, and {extra!r}), "
            f"declare {extra!r} as the label (--label-column {extra}), or leave it out "
            f"(--ignore-columns {extra})."
        )


def main_input(model: Model) -> str:
    """Return the main input argument of a transformers model, or ``x`` for other models."""
    return "x" if model.config is None else getattr(model.module, "main_input_name", "x")
