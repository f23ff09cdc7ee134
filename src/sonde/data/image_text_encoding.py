"""Recipe by which a model reads images and texts: joint processor, two towers or language model."""

from hashlib import blake2b
from pathlib import Path

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.special_ids import placeholder_ids, special_ids
from sonde.data.columns import Layout
from sonde.data.encoder import dtype_of
from sonde.data.image_encoding import patch_of
from sonde.data.image_text import ImageTextEncoder
from sonde.data.text import Long
from sonde.data.text_encoding import context_of, tokenizer_hash
from sonde.data.towers import has_two_towers


def image_text_encoder(
    model: Model,
    layout: Layout,
    base: Path,
    names: frozenset[str],
    max_length: int | None,
    long: Long,
) -> ImageTextEncoder:
    """Return the encoder of images and texts for a model.

    Raises
    ------
    InputError
        If there are targets, which such a model does not read.
    """
    if layout.target is not None:
        raise InputError(
            f"{model.name or 'the model'}: targets cannot be read together with images. Leave "
            "out target_column."
        )
    processor = model.processor
    image = layout.inputs[0] if layout.kind != "text" else None
    text = layout.inputs[-1] if layout.kind != "image" else None
    limits = [n for n in (context_of(model), max_length) if n is not None]
    recipe = processor.image_processor.to_json_string() + str(processor.chat_template)
    return ImageTextEncoder(
        processor=processor,
        image=image,
        text=text,
        base=base,
        names=names,
        two_towers=has_two_towers(model.module),
        special=special_ids(processor),
        placeholders=placeholder_ids(processor),
        max_length=min(limits, default=None),
        long=long,
        patch=patch_of(getattr(model.config, "vision_config", None)),
        dtype=dtype_of(model.module),
        origin={
            "processor": blake2b(recipe.encode(), digest_size=16).hexdigest(),
            "tokenizer": tokenizer_hash(processor.tokenizer),
        },
    )
