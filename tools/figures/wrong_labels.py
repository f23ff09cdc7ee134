"""Print how often the interval of wrong labels holds their number.

Labels of sets whose labels are right are exchanged at 0, 2, 5 and 10 %. Classifiers give the
probabilities of five folds, shuffled and not, and ``held_out_probabilities`` its own. ``coverage``
is how often the interval holds the number of exchanged labels, for shuffled folds and for folds in
the order of the rows; ``sure`` counts the labels with p(wrong) of at least .9, and ``wrong`` is the
fraction of these that are exchanged.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tools.figures._table import Table, Words, chosen, head

from sonde.findings.label_errors import held_out_probabilities
from sonde.metrics import WrongLabels, wrong_labels

RATES: Final = (0.0, 0.02, 0.05, 0.10)
SETS: Final[dict[str, Callable[[int], Any]]] = {
    "breast cancer": lambda _: datasets.load_breast_cancer(return_X_y=True),
    "iris": lambda _: datasets.load_iris(return_X_y=True),
    "wine": lambda _: datasets.load_wine(return_X_y=True),
    "digits": lambda _: datasets.load_digits(return_X_y=True),
    "blobs": lambda seed: datasets.make_blobs(
        600, 6, centers=6, cluster_std=3.0, random_state=seed
    )[:2],
    "moons": lambda seed: datasets.make_moons(500, noise=0.25, random_state=seed),
    "shells": lambda seed: datasets.make_gaussian_quantiles(
        n_samples=700, n_features=5, n_classes=4, random_state=seed
    ),
}
MODELS: Final[dict[str, Callable[[], Any]]] = {
    "logistic regression": lambda: make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000)
    ),
    "random forest": lambda: RandomForestClassifier(100, random_state=0),
    "naive Bayes": lambda: make_pipeline(StandardScaler(), GaussianNB(var_smoothing=1e-3)),
}
OWN: Final = "held_out_probabilities"


def table(words: Words = (), *, seeds: int = 6) -> Table:
    """Print the table.

    Parameters
    ----------
    words
        Sets whose names hold one of these words.
    seeds
        Draws of each row and rate.
    """
    warnings.filterwarnings("ignore")
    yield head("set", "probabilities", "draws", "coverage, shuffled", "in order", "sure", "wrong")
    every: dict[bool, list[bool]] = {True: [], False: []}
    n_sure = n_wrong = 0
    for name, _ in chosen(SETS, words):
        for model in (*MODELS, OWN):
            held: dict[bool, list[bool]] = defaultdict(list)
            sure = wrong = 0
            for bad, is_shuffled, one in _draws(name, model, seeds):
                held[is_shuffled].append(one.low - 0.5 <= bad.sum() <= one.high + 0.5)
                doubtful = one.probability.numpy() >= 0.9
                sure, wrong = sure + int(doubtful.sum()), wrong + int(bad[doubtful].sum())
            yield _line(name, model, held, sure, wrong)
            n_sure, n_wrong = n_sure + sure, n_wrong + wrong
            for kind, values in held.items():
                every[kind] += values
    yield _line("all", "", every, n_sure, n_wrong)


def _line(name: str, model: str, held: dict[bool, list[bool]], sure: int, wrong: int) -> str:
    cells = [_share(sum(held[kind]), len(held[kind])) for kind in (True, False)]
    n = sum(map(len, held.values()))
    model = f" {model}" if model else ""
    return f"| {name} |{model} | {n} | {cells[0]} | {cells[1]} | {sure} | {_share(wrong, sure)} |"


def _draws(name: str, model: str, seeds: int) -> Iterator[tuple[np.ndarray, bool, WrongLabels]]:
    """Yield exchanged labels, whether folds are shuffled, and the estimate."""
    for seed in range(100, 100 + seeds):
        x, truth = SETS[name](seed)
        n, n_classes = len(truth), int(truth.max()) + 1
        for rate in RATES:
            draw = np.random.default_rng(1000 * seed + round(100 * rate))
            bad = np.zeros(n, bool)
            bad[draw.choice(n, round(rate * n), replace=False)] = True
            label = np.where(bad, (truth + draw.integers(1, n_classes, n)) % n_classes, truth)
            if model == OWN:
                y = torch.from_numpy(label)
                p = held_out_probabilities(torch.from_numpy(x).double(), y, seed=seed)
                yield bad, True, wrong_labels(p, y)
                continue
            for is_shuffled in (True, False):
                folds = KFold(5, shuffle=is_shuffled, random_state=seed if is_shuffled else None)
                p = cross_val_predict(MODELS[model](), x, label, cv=folds, method="predict_proba")
                yield bad, is_shuffled, wrong_labels(p, label)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}".lstrip("0") if whole else ""
