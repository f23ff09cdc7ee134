"""How a model reads recordings: its feature extractor and the start of its decoder."""

from hashlib import blake2b
from pathlib import Path

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data._checkpoints import FACTORY
from sonde.data.audio import AudioEncoder
from sonde.data.columns import Layout
from sonde.data.encoder import dtype_of
from sonde.data.processors import is_feature_extractor
from sonde.data.text_encoding import start_token


def audio_encoder(model: Model, layout: Layout, base: Path, names: frozenset[str]) -> AudioEncoder:
    """Return the encoder of recordings for a model.

    Raises
    ------
    InputError
        If nothing says how recordings become numbers.
    """
    extractor = model.processor
    name = model.name or "the model"
    if not is_feature_extractor(extractor):
        raise InputError(
            f"{name} came without a recipe for recordings (preprocessor_config.json). Pass "
            f"processor= with its feature extractor in Python; {FACTORY}."
        )
    if layout.target is not None:
        raise InputError(f"{name}: targets of recordings are not read. Leave out target_column.")
    has_decoder = model.task == "seq2seq" and "decoder_input_ids" in names
    recipe = blake2b(extractor.to_json_string().encode(), digest_size=16).hexdigest()
    return AudioEncoder(
        extractor,
        layout.inputs[0],
        base,
        extractor.model_input_names[0],
        names,
        start_token(model) if has_decoder else None,
        dtype_of(model.module),
        origin={"processor": recipe},
    )
