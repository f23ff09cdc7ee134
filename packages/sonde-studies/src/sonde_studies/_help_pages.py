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
from sonde.core import Inputs
from sonde.data import open_inputs
from sonde.weights import Examples, Rewrite
from sonde_studies.arms import note, part
from sonde_studies.places import PLACES

LONG, LENGTH, CALIBRATED, JUDGED = 600, 300, 6, 2
BLOCKS = ("model.layers.[0-9].*",)
"""Layers that are rewritten: those of the first ten blocks, which takes seconds."""
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


def needed(rule: Rewrite, data: Inputs) -> dict[str, Inputs]:
    """Return the examples that a rewrite cannot do without: plain rounding reads none."""
    needs = rule.reads().items()
    return {
        name: data for name, need in needs if not (isinstance(need, Examples) and need.optional)
    }


def gains_of(
    model: Model, seed: int, tiny: bool, plain: Rewrite, informed: Rewrite
) -> dict[str, float]:
    """Return what the rewrite that calibrates gains over the other, on held-out and on own pages.

    Parameters
    ----------
    model : Model
    seed : int
        Draws the pages: some calibrate, others judge.
    tiny : bool
    plain, informed : Rewrite
        They make equally small models.
    """
    n, n_calibrated = (1, 2) if tiny else (JUDGED, CALIBRATED)
    texts = drawn_pages(seed, n_calibrated + n, LENGTH)
    own, held = texts[:n], texts[n_calibrated:]
    loss = list[tuple[float, float]]()
    for arm, rule in (("plain", plain), ("calibrated", informed)):
        data = open_inputs(model, texts[:n_calibrated])
        given = needed(rule, data)
        with part(arm):
            note(rows=n_calibrated if given else 0)
        new = rule.plan(model, given).fold(model)
        loss.append((mean_loss(model, new, own), mean_loss(model, new, held)))
    gain = [a - b for a, b in zip(*loss, strict=True)]
    return {
        "gain": gain[1],
        "own texts": gain[0] - gain[1],
        "loss, whole model": mean_loss(model, model.module, held),
        "loss, plain": loss[0][1],
        "loss, calibrated": loss[1][1],
    }
