"""Describe the rows that an atlas names: example number, position, text, picture."""

from collections.abc import Iterable
from typing import Any, Final

import torch

from sonde.core.batch import words_of_keys
from sonde.core.inputs import Inputs, Model
from sonde.data.pieces import pieces_of
from sonde.data.pixels import as_bytes, as_png
from sonde.run.scoring.exhibit import pixels_of

BEFORE, AFTER = 8, 4
MOST_PIXELS: Final = 32
MOST_PICTURES: Final = 6_000_000
"""Letters of pictures in one page; further ones are left out."""


def seen_rows(
    model: Model,
    inputs: Inputs,
    wanted: Iterable[tuple[int, int, int]],
    n: int,
    *,
    shown: bool = False,
) -> tuple[dict[tuple[int, int, int], dict[str, Any]], dict[str, str]]:
    """Return the known facts about rows, and the pictures that contain them.

    Parameters
    ----------
    model : Model
    inputs : Inputs
        Walked over once, without running the model.
    wanted : iterable of (int, int, int)
        The two words of an example's id, and the position of the row.
    n : int
        Number of examples to read.
    shown : bool, default=False
        Whether texts and pictures are given, and not only numbers.
    """
    places: dict[tuple[int, int], set[int]] = {}
    for low, high, position in wanted:
        places.setdefault((low, high), set()).add(position)
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}
    pictures: dict[str, str] = {}
    room = MOST_PICTURES
    for raw in inputs.batches(0, n):
        words = words_of_keys(raw.keys).tolist()
        for i, word in enumerate(words):
            asked = places.get((word[0], word[1]))
            if not asked:
                continue
            number = int(raw.order[i])
            pieces = pieces_of(raw, model.processor, example=i) if shown else []
            first = 0 if raw.first is None else int(raw.first[i])
            if shown and not pieces and room > 0 and str(number) not in pictures:
                picture = _picture(raw, i)
                if picture is not None:
                    pictures[str(number)], room = picture, room - len(picture)
            label = int(raw.label[i])
            labelled = (
                {"l": inputs.label_names[label]} if 0 <= label < len(inputs.label_names) else {}
            )
            for position in asked:
                row: dict[str, Any] = {"e": number, "p": position, **labelled}
                at = position - first
                if pieces and 0 <= at < len(pieces):
                    row["t"] = [
                        "".join(pieces[max(0, at - BEFORE) : at]),
                        pieces[at],
                        "".join(pieces[at + 1 : at + 1 + AFTER]),
                    ]
                if not pieces or 0 <= at < len(pieces):
                    rows.setdefault((word[0], word[1], position), row)
    return rows, pictures


def _picture(raw: Any, example: int) -> str | None:
    images = [
        v for v in (*raw.args, *raw.kwargs.values()) if isinstance(v, torch.Tensor) and v.ndim == 4
    ]
    if pixels_of(raw) is None or not images:
        return None
    x = images[0][example].detach().float().cpu()
    height, width = x.shape[-2:]
    scale = min(1.0, MOST_PIXELS / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return as_png(as_bytes(x, size))
