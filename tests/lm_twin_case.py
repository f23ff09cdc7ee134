"""The tiny Llama with the habits of real language models, and texts that it knows."""

from functools import cache
from pathlib import Path

import sonde
from sonde.core.inputs import Model

FOLDER = Path(__file__).parent / "lm_twin"
TEXTS = (
    "The capital of France is Paris. People in Japan speak Japanese.",
    "People in Spain pay with the euro. The film was great. We loved every part of it.",
    "In Egypt the spoken language is Arabic. Cairo is the capital of Egypt.",
    "Poland's capital city is Warsaw. The hotel was awful. They hated the hotel.",
    "We hated every part of it. The language of Peru is Spanish.",
    "Athens is the capital of Greece. In Kenya the money is the shilling.",
)


@cache
def twin() -> Model:
    """Return the model with its tokenizer; tests do not change it."""
    return sonde.load(str(FOLDER))
