"""Hands that plant a fault in a copied folder: its pictures, lines, columns, arrays, weights."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tools.field.nets import save_weights, weights_of
from torch import Tensor

Row = dict[str, Any]
Plant = Callable[[Path], Sequence[str] | None]


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Parameters
    ----------
    name, subject : str
    says : str
        What a correct report would say, in a few words.
    accepted : str
        Pattern of texts that say it, decided beforehand; case does not matter.
    plant : callable
        Changes a copy of the subject's folder; may return flags in place of the subject's own.
    """

    name: str
    subject: str
    says: str
    accepted: str
    plant: Plant


def flags_of(place: Path) -> list[str]:
    """Return the flags of a copied subject."""
    return list(json.loads((place / "subject.json").read_text("utf-8"))["flags"])


def pictures(place: Path) -> list[Path]:
    """Return the picture files of a folder in order."""
    return sorted(place.rglob("*.png"))


def on_pictures(
    change: Callable[[np.ndarray, Path], np.ndarray],
    some: Callable[[int, Path], bool] | None = None,
) -> Plant:
    """Plant: change the pixels of pictures, of all or of `some`."""

    def plant(place: Path) -> None:
        for i, path in enumerate(pictures(place)):
            if some is None or some(i, path):
                with Image.open(path) as opened:
                    pixels = np.array(opened)
                Image.fromarray(change(pixels, path)).save(path)

    return plant


def on_lines(change: Callable[[list[Row], random.Random], list[Row]]) -> Plant:
    """Plant: change the rows of ``data.jsonl``."""

    def plant(place: Path) -> None:
        path = place / "data.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        made = change(rows, random.Random(11))
        path.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")

    return plant


def on_texts(change: Callable[[str], str], part: float = 1.0) -> Plant:
    """Plant: change the texts of ``data.jsonl``, of all rows or of a drawn part."""

    def rewrite(rows: list[Row], draw: random.Random) -> list[Row]:
        return [
            r | {"text": change(r["text"]) if draw.random() < part else r["text"]} for r in rows
        ]

    return on_lines(rewrite)


def on_table(change: Callable[[list[str], np.ndarray, np.random.Generator], None]) -> Plant:
    """Plant: change the numbers of ``data.csv`` in place; the last column is the label.

    Numbers that are NaN afterwards are left empty.
    """

    def plant(place: Path) -> None:
        with (place / "data.csv").open(encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        numbers = np.array(rows, dtype=object).astype(float)
        change(head, numbers, np.random.default_rng(12))
        with (place / "data.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            for row in numbers:
                cells = ["" if np.isnan(v) else repr(float(v)) for v in row]
                kind = rows[0][-1]
                cells[-1] = cells[-1] if "." in kind else str(int(row[-1]))
                writer.writerow(cells)

    return plant


def on_arrays(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Plant:
    """Plant: change inputs and labels of ``data.npz``."""

    def plant(place: Path) -> None:
        with np.load(place / "data.npz") as kept:
            x, label = change(kept["x"].copy(), kept["label"].copy())
        np.savez(place / "data.npz", x=x, label=label)

    return plant


def on_weights(change: Callable[[dict[str, Tensor]], None]) -> Plant:
    """Plant: change tensors of the model by name, in place or by assignment."""

    def plant(place: Path) -> None:
        folder = place / "model" if (place / "model").is_dir() else place
        tensors = weights_of(folder)
        change(tensors)
        save_weights(folder, {k: v.contiguous().clone() for k, v in tensors.items()})

    return plant


def on_net(**changed: Any) -> Plant:
    """Plant: build the net with other arguments."""

    def plant(place: Path) -> None:
        note = json.loads((place / "net.json").read_text("utf-8"))
        note["arguments"] |= changed
        (place / "net.json").write_text(json.dumps(note), "utf-8")

    return plant


def on_flags(**changed: str) -> Plant:
    """Plant: give other values to flags: ``image_mean="0"``."""

    def plant(place: Path) -> list[str]:
        flags = flags_of(place)
        for name, value in changed.items():
            word = "--" + name.replace("_", "-")
            if word in flags:
                flags[flags.index(word) + 1] = value
            else:
                flags += [word, value]
        return flags

    return plant


def on_file(name: str, change: Callable[[Any], Any]) -> Plant:
    """Plant: change a JSON file of the folder."""

    def plant(place: Path) -> None:
        path = place / name
        note = change(json.loads(path.read_text("utf-8")))
        path.write_text(json.dumps(note, ensure_ascii=False), "utf-8")

    return plant
