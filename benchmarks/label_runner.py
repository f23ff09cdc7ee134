"""Runs in the environment of cleanlab: exchanged labels in a table, texts and digits, by rank.

A net is trained on one half of the rows; 5 % of the labels of the other half are exchanged. Every
arm ranks the same rows: a scan of the whole net, a scan of the net without its head (by the probe
alone), the probability that the net gives the label, and cleanlab's scores of these probabilities.
"""

import ast
import statistics
import sysconfig
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import sonde
from benchmarks.environments import peer_version
from sonde.findings.label_errors import held_out_probabilities
from sonde.findings.settings import ScanSettings
from sonde.metrics import wrong_labels

EXCHANGED: Final = 0.05
STEPS, BATCH = 400, 64
LIBRARIES: Final = ("numpy", "scipy", "sklearn", "sympy", "torch")
WORDS, VOCABULARY, EACH = 40, 4096, 380


@dataclass(frozen=True, eq=False)
class Task:
    """A trained net and the rows that it was not trained on.

    Parameters
    ----------
    body, head : nn.Module
    x : Tensor
        Inputs, one a row.
    label : Tensor
        True labels.
    """

    body: nn.Module
    head: nn.Module
    x: Tensor
    label: Tensor


class MeanOfWords(nn.Module):
    """Embed words and take their mean; number 0 stands for no word."""

    def __init__(self, dim: int):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the words of each text."""
        given = (x > 0).to(self.words.weight)[..., None]
        return (self.words(x) * given).sum(1) / given.sum(1).clamp(min=1)


def _digits() -> tuple[Tensor, Tensor, nn.Module]:
    pixels, target = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16).float(), torch.tensor(target), nn.Linear(64, 32)


def _table() -> tuple[Tensor, Tensor, nn.Module]:
    rows, target = load_breast_cancer(return_X_y=True)
    table = torch.from_numpy(np.asarray(rows))
    x = ((table - table.mean(0)) / table.std(0)).float()
    return x, torch.tensor(target), nn.Linear(30, 32)


def _texts() -> tuple[Tensor, Tensor, nn.Module]:
    home, rows, labels = Path(sysconfig.get_paths()["purelib"]), [], []
    for number, name in enumerate(LIBRARIES):
        said = sorted(_docstrings(_packages(home) / name))[:EACH]
        rows += [_numbers(text) for text in said]
        labels += [number] * len(said)
    return torch.tensor(rows), torch.tensor(labels), MeanOfWords(32)


def _packages(home: Path) -> Path:
    """Return the folder of the project's packages, which a peer's environment only refers to."""
    return home if (home / "torch").is_dir() else Path(torch.__file__).parent.parent


def _docstrings(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in sorted(folder.rglob("*.py")):
        if len(found) > 2 * EACH:
            break
        tree = ast.parse(path.read_text("utf-8"))
        kinds = (ast.FunctionDef, ast.ClassDef)
        made = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        found |= {text for text in made if text and len(text.split()) >= 8}
    return found


def _numbers(text: str) -> list[int]:
    words = [w.strip(".,:;()`'\"").lower() for w in text.split()][:WORDS]
    made = [1 + zlib.crc32(w.encode()) % (VOCABULARY - 1) for w in words]
    return made + [0] * (WORDS - len(made))


KINDS: Final[dict[str, Callable[[], tuple[Tensor, Tensor, nn.Module]]]] = {
    "digits": _digits, "table": _table, "texts": _texts,
}  # fmt: skip


@cache
def task(kind: str) -> Task:
    """Return a net trained on half of the rows of a kind, and the other half."""
    torch.manual_seed(0)
    x, label, first = KINDS[kind]()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    x, label = x[order], label[order]
    body = nn.Sequential(first, nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    head = nn.Linear(32, int(label.max()) + 1)
    half, weights = len(x) // 2, [*body.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(weights, 3e-3)
    for _ in range(STEPS):
        rows = torch.randint(half, (BATCH,))
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(head(body(x[rows])), label[rows], label_smoothing=0.05)
        loss.backward()
        optimiser.step()
    for part in (body, head):
        part.requires_grad_(False).eval()
    return Task(body, head, x[half:], label[half:])


def exchanged(one: Task, seed: int) -> tuple[Tensor, Tensor]:
    """Return labels, some of them exchanged for another class, and which ones."""
    draw = np.random.default_rng(seed)
    n, n_classes = len(one.x), int(one.label.max()) + 1
    chosen = torch.from_numpy(draw.choice(n, round(EXCHANGED * n), replace=False))
    label, bad = one.label.clone(), torch.zeros(n, dtype=torch.bool)
    step = torch.from_numpy(draw.integers(1, n_classes, len(chosen)))
    label[chosen], bad[chosen] = (label[chosen] + step) % n_classes, True
    return label, bad


def _scanned(module: nn.Module, one: Task, label: Tensor) -> list[int]:
    """Return the rows that a scan lists to look at first, in its order."""
    items = [
        {"id": str(i), "x": x, "label": int(k)}
        for i, (x, k) in enumerate(zip(one.x, label, strict=True))
    ]
    report = sonde.scan(module, items, settings=ScanSettings(progress=False, only=("SND034",)))
    return [int(row["id"]) for row in report.json()["rows"]["suspects"]["rows"]]


def _chances(one: Task) -> np.ndarray:
    with torch.no_grad():
        return one.head(one.body(one.x)).softmax(1).double().numpy()


def by_model(one: Task, label: Tensor) -> list[int]:
    """Rank by the probability that the net gives the label."""
    own = _chances(one)[np.arange(len(label)), label.numpy()]
    return np.argsort(own, kind="stable").tolist()


def by_cleanlab(one: Task, label: Tensor) -> list[int]:
    """Rank by the score of cleanlab's Datalab, from the net's probabilities and last states."""
    from cleanlab import Datalab  # pyright: ignore[reportMissingImports]

    lab = Datalab({"label": label.tolist()}, label_name="label", verbosity=0)
    states = one.body(one.x).numpy()
    lab.find_issues(features=states, pred_probs=_chances(one), issue_types={"label": {}})
    score = lab.get_issues("label")["label_score"].to_numpy()
    return np.argsort(score, kind="stable").tolist()


ARMS: Final[dict[str, Callable[[Task, Tensor], list[int]]]] = {
    "both": lambda one, label: _scanned(nn.Sequential(one.body, one.head), one, label),
    "probe": lambda one, label: _scanned(one.body, one, label),
    "model": by_model,
    "cleanlab": by_cleanlab,
}


def ranked(seeds: int) -> dict[str, Any]:
    """Return the fraction of exchanged labels among as many first rows, for each kind and arm."""
    found: dict[str, Any] = {"version": peer_version("cleanlab")}
    for kind in KINDS:
        one = task(kind)
        right = float((torch.from_numpy(_chances(one)).argmax(1) == one.label).double().mean())
        made: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for seed in range(seeds):
            label, bad = exchanged(one, seed)
            for arm, rank in ARMS.items():
                made[arm].append(float(bad[rank(one, label)[: int(bad.sum())]].sum() / bad.sum()))
        arms = {arm: statistics.mean(shares) for arm, shares in made.items()}
        found[kind] = {"n": len(one.x), "accuracy": right, "arms": arms}
    return found


NOISES: Final = {"3 % of all classes": 0.03, "10 % of all classes": 0.10, "8 % to the next": 0.08}
"""Wrong labels of the sets that are counted: their fraction, drawn or always the next class."""


def _sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return features and true labels of each set: inputs, and states of nets."""
    found = {}
    for kind in ("digits", "table"):
        x, label, _ = KINDS[kind]()
        found[kind] = x.double().numpy(), label.numpy()
    for kind in ("digits", "texts"):
        one = task(kind)
        found[f"states of {kind}"] = one.body(one.x).double().numpy(), one.label.numpy()
    return found


def noised(label: np.ndarray, noise: str) -> tuple[np.ndarray, np.ndarray]:
    """Return labels with wrong ones, and which are wrong."""
    draw, n, n_classes = np.random.default_rng(0), len(label), int(label.max()) + 1
    bad = np.zeros(n, bool)
    bad[draw.choice(n, round(NOISES[noise] * n), replace=False)] = True
    step = 1 if noise.endswith("next") else draw.integers(1, n_classes, n)
    return np.where(bad, (label + step) % n_classes, label), bad


def counted() -> list[dict[str, Any]]:
    """Return, for each noised set and arm, estimated number, precision at the true one, seconds.

    The probabilities of `sonde, probabilities` and of cleanlab are the same: logistic regression on
    five folds of the noised labels, whose time is not counted.
    """
    from cleanlab.filter import find_label_issues  # pyright: ignore[reportMissingImports]
    from cleanlab.rank import get_label_quality_scores  # pyright: ignore[reportMissingImports]

    found: list[dict[str, Any]] = []
    for name, (x, truth) in _sets().items():
        for noise in NOISES:
            label, bad = noised(truth, noise)
            y, k = torch.from_numpy(label), int(bad.sum())
            fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
            p = cross_val_predict(fitted, x, label, cv=5, method="predict_proba")
            row: dict[str, Any] = {"set": name, "noise": noise, "rows": len(y), "wrong": k}
            at = time.perf_counter()
            own = wrong_labels(held_out_probabilities(torch.from_numpy(x), y), y)
            row["features"] = _arm(own.number, own.order.numpy(), bad, at, own.low, own.high)
            at = time.perf_counter()
            own = wrong_labels(p, y)
            row["probabilities"] = _arm(own.number, own.order.numpy(), bad, at, own.low, own.high)
            at = time.perf_counter()
            n_issues = int(find_label_issues(label, p).sum())
            order = np.argsort(get_label_quality_scores(label, p), kind="stable")
            row["cleanlab"] = _arm(n_issues, order, bad, at)
            found.append(row)
    return found


def _arm(
    number: float, order: np.ndarray, bad: np.ndarray, begun: float, *interval: float
) -> dict[str, Any]:
    return {
        "number": number,
        "interval": interval,
        "precision": float(bad[order[: int(bad.sum())]].mean()),
        "seconds": time.perf_counter() - begun,
    }


def page(found: list[dict[str, Any]]) -> str:
    """Return the table of `counted` as Markdown."""
    lines = [
        "| set | wrong labels | sonde, features | sonde, probabilities | cleanlab | "
        "precision | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    arms = ("features", "probabilities", "cleanlab")
    for row in found:
        cells = [
            f"{row[a]['number']:.0f}"
            + (" ({:.0f}-{:.0f})".format(*row[a]["interval"]) if row[a]["interval"] else "")
            for a in arms
        ]
        precision = " / ".join(f"{row[a]['precision']:.2f}".lstrip("0") for a in arms)
        seconds = " / ".join(f"{row[a]['seconds']:.2f}" for a in arms)
        head = f"{row['set']}, {row['noise']} | {row['wrong']} of {row['rows']:,}"
        lines.append(f"| {head} | {' | '.join(cells)} | {precision} | {seconds} |")
    errors = {
        a: statistics.mean(abs(row[a]["number"] - row["wrong"]) / row["wrong"] for row in found)
        for a in arms
    }
    precision = " / ".join(
        f"{statistics.mean(row[a]['precision'] for row in found):.2f}".lstrip("0") for a in arms
    )
    seconds = " / ".join(f"{statistics.mean(row[a]['seconds'] for row in found):.2f}" for a in arms)
    error = " | ".join(f"error {errors[a]:.0%}".replace("%", " %") for a in arms)
    lines.append(f"| mean | | {error} | {precision} | {seconds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(counted()))
