"""Properties of a model in its Hugging Face configuration."""

from typing import Any


def is_encoder_decoder(config: Any) -> bool:
    """Return whether a model has an encoder, and a decoder that reads its own tokens.

    Examples
    --------
    >>> is_encoder_decoder(None)
    False
    """
    return bool(getattr(config, "is_encoder_decoder", False))
