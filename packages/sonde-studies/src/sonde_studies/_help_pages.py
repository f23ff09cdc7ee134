"""A pretrained language model, and help pages of Python that it reads."""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

import sonde
from sonde import InputError, Model
from sonde_studies.places import PLACES

LONG = 600
FOLDER = Path(".lm")


@cache
def language_model(place: str, tiny: bool) -> Model:
    """Return the model of a place, or the shipped model of bytes.

    Parameters
    ----------
    place : str
        Name of a place whose model ``make places`` puts below ``.lm``.
    tiny : bool
        Return the shipped model.

    Raises
    ------
    InputError
        If the model was not fetched.
    """
    if tiny:
        return sonde.load("sonde:stdlib", device="cpu")
    folder = FOLDER / place
    if not folder.exists():
        raise InputError(
            f"expected a model folder {folder}, got none: this study runs on "
            f"{PLACES[place].what}. Run `{PLACES[place].source}` in the repository first."
        )
    return sonde.load(str(folder), device="cpu")


def drawn_pages(seed: int, n: int, length: int) -> list[str]:
    """Return the beginnings of ``n`` different help pages."""
    pages = [text for _, text in sorted(topics.items()) if len(text) > LONG]
    return [text[:length] for text in random.Random(seed).sample(pages, n)]


def mean_loss(model: Model, module: Any, texts: Sequence[str]) -> float:
    """Return the cross-entropy of texts, in nats per token."""
    total, n = 0.0, 0
    for text in texts:
        ids = torch.tensor([model.processor(text)["input_ids"]])
        total += float(losses_of(module, ids).sum())
        n += ids.shape[1] - 1
    return total / n


@torch.no_grad()
def losses_of(module: Any, ids: Tensor) -> Tensor:
    """Return the loss of each token after the first."""
    log_p = module(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(1)
    return -log_p.gather(1, ids[0, 1:, None])[:, 0]
