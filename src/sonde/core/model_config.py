"""What the Hugging Face configuration of a model says of it."""

from typing import Any


def is_encoder_decoder(config: Any) -> bool:
    """Return whether a model has an encoder, and a decoder that reads tokens of its own.

    Examples
    --------
    >>> is_encoder_decoder(None)
    False
    """
    return bool(getattr(config, "is_encoder_decoder", False))
