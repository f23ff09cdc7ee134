"""What plain torch, Pillow and transformers say of a folder: answers, accuracy, seconds.

Independent of sonde: it reads the same files by other code.
"""

import csv
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tools.field.subjects import Subject, r_squared
from torch import Tensor, nn


@dataclass(frozen=True)
class Plain:
    """Answers of a model on the data of its folder.

    Parameters
    ----------
    answers : Tensor
        (row, output), of the rows in the order of the data.
    labels : list or None
    seconds : float
        Of all forwards, one thread, batches of 64 (texts 16).
    """

    answers: Tensor
    labels: list[Any] | None
    seconds: float


def module(place: Path) -> Any:
    """Return what the folder's factory gives."""
    spec: Any = importlib.util.spec_from_file_location("nets_of_a_folder", place / "nets.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made.make()


def plain(said: Subject, place: Path, flags: Sequence[str]) -> Plain:
    """Run a folder's model on its data without sonde."""
    make = {"images": _pictures, "texts": _texts, "embedding": _texts}.get(said.kind, _arrays)
    run, inputs, labels = make(said, place, list(flags))
    size = 16 if said.kind in ("texts", "embedding") else 64
    began, answers = time.process_time(), []
    with torch.no_grad():
        for i in range(0, len(inputs), size):
            answers.append(run(inputs[i : i + size]))
    return Plain(torch.cat(answers), labels, time.process_time() - began)


def figure(said: Subject, made: Plain, flags: Sequence[str]) -> float | None:
    """Return accuracy or R^2, None without labels."""
    if made.labels is None:
        return None
    if said.kind == "regression":
        target = torch.tensor([float(v) for v in made.labels], dtype=torch.float64)
        return r_squared(made.answers[:, 0].double(), target)
    flags = list(flags)
    names = flags[flags.index("--classes") + 1].split(",") if "--classes" in flags else None
    if names is None and said.classes:
        names = list(said.classes)
    given = [names.index(str(v)) if names else int(v) for v in made.labels]
    return float((made.answers.argmax(1) == torch.tensor(given)).double().mean())


Made = tuple[Callable[[Any], Tensor], Any, list[Any] | None]


def _pictures(said: Subject, place: Path, flags: list[str]) -> Made:
    net = module(place)
    mean, std = (float(flags[flags.index(f"--image-{w}") + 1]) for w in ("mean", "std"))
    labels: list[Any] | None = None
    if said.data.endswith(".jsonl"):
        rows = [json.loads(v) for v in (place / said.data).read_text("utf-8").splitlines()]
        paths, labels = [place / r["image"] for r in rows], [r["label"] for r in rows]
    else:
        paths = sorted((place / said.data).rglob("*.png"))
        labels = [p.parent.name for p in paths] if said.figure is not None else None
    pixels = [np.atleast_3d(np.array(Image.open(p))) for p in paths]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    return net, (x - mean) / std, labels


def _texts(said: Subject, place: Path, _: list[str]) -> Made:
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    rows = [json.loads(v) for v in (place / said.data).read_text("utf-8").splitlines()]
    labels = [r["label"] for r in rows] if said.figure is not None else None
    if said.model == "model":
        folder = place / "model"
        kind: Any = AutoModelForSequenceClassification if labels else AutoModel
        net, tokenizer = kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    else:
        net, tokenizer = module(place)

    def run(texts: list[str]) -> Tensor:
        kept = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        if isinstance(net, nn.Module) and not hasattr(net, "config"):
            return net(kept["input_ids"], kept["attention_mask"])
        made = net(**kept)
        return made.logits if labels else made.last_hidden_state[:, 0]

    return run, [r["text"] for r in rows], labels


def _arrays(said: Subject, place: Path, _: list[str]) -> Made:
    net = module(place)
    if said.data.endswith(".npz"):
        with np.load(place / said.data) as kept:
            return net, torch.from_numpy(kept["x"]), kept["label"].tolist()
    with (place / said.data).open(encoding="utf-8") as file:
        _head, *rows = csv.reader(file)
    x = torch.tensor([[float(v or "nan") for v in r[:-1]] for r in rows])
    return net, x, [r[-1] for r in rows]
