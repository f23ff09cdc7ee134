"""Heads that predict classes from states, texts or sets, with ``fit`` and ``predict``."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs]
from sklearn.base import clone  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from sklearn.exceptions import ConvergenceWarning  # pyright: ignore[reportMissingTypeStubs]
from sklearn.feature_extraction.text import TfidfVectorizer  # pyright: ignore
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from sklearn.model_selection import (  # pyright: ignore
    StratifiedGroupKFold,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.neighbors import KNeighborsClassifier  # pyright: ignore[reportMissingTypeStubs]
from sklearn.neural_network import MLPRegressor  # pyright: ignore[reportMissingTypeStubs]
from sklearn.pipeline import make_pipeline  # pyright: ignore[reportUnknownVariableType]
from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingTypeStubs]
from sklearn.svm import SVC  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from sonde import InputError
from sonde.layers import Attention, Readout, SourceFusion
from sonde.metrics import auroc
from sonde_studies.worlds.learning import drawn, minimise

Values = np.ndarray[Any, np.dtype[Any]]

CHARACTERS = (1, 3)
OWN_LAYERS, JOINED_LAYERS = "hidden layers of each source", "hidden layers of all at once"


class AutoencoderCode:
    """The code of an autoencoder with three hidden layers, as a step of a pipeline.

    Its outer hidden layers have as many units as the geometric mean of input and code.

    Parameters
    ----------
    width : int
        Units of the code.
    seed : int, default=0
        Draws first weights and batches.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        self.width, self.seed = width, seed

    def fit(self, x: Float[np.ndarray, "row dim"], y: object = None) -> "AutoencoderCode":
        """Train the autoencoder to rebuild the rows."""
        outer = max(self.width, round((x.shape[1] * self.width) ** 0.5))
        sizes = (outer, self.width, outer)
        self._net = MLPRegressor(
            hidden_layer_sizes=sizes,
            activation="tanh",
            learning_rate_init=0.005,
            max_iter=200,
            random_state=self.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a summary may stop early
            self._net.fit(x, x)
        return self

    def transform(self, x: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, "row code"]:
        """Return the code of each row."""
        for weight, bias in list(zip(self._net.coefs_, self._net.intercepts_, strict=True))[:2]:
            x = np.tanh(x @ weight + bias)
        return x


class LinesHead(nn.Module):
    """Hidden layers of each line, then one layer over all of them, and a linear head.

    A line is a part of a row's states, such as those of one sentence. With ``apart=False`` all
    lines are joined before their hidden layer, which has about as many parameters.

    Parameters
    ----------
    widths : sequence of int
        Width of each line; rows hold the lines side by side.
    dim : int
        Width of the hidden layers.
    apart : bool, default=True
        Give each line a hidden layer of its own.
    steps, seed : int
    """

    def __init__(
        self, widths: Sequence[int], dim: int, apart: bool = True, steps: int = 300, seed: int = 0
    ) -> None:
        super().__init__()
        self.widths, self.dim, self.apart = tuple(widths), dim, apart
        self.steps, self.seed = steps, seed

    def forward(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row class"]:
        """Return the logits of standardised rows."""
        return self.last(self.fusion(*x.split(self.fusion.widths, 1)))

    def fit(self, x: Float[np.ndarray, "row dim"], label: Any) -> "LinesHead":
        """Train on rows and their classes."""
        self.classes_, number = np.unique(label, return_inverse=True)
        self.scale = StandardScaler().fit(x)
        drawn(self._build, self.seed)
        shown, target = self._standardised(x), torch.from_numpy(number)

        def loss(rows: Tensor) -> Tensor:
            return cross_entropy(self(dropout(shown[rows], 0.2)), target[rows])

        minimise(loss, self.parameters(), len(shown), steps=self.steps, seed=self.seed, rate=1e-3)
        return self.eval()

    @torch.no_grad()
    def predict(self, x: Float[np.ndarray, "row dim"]) -> Any:
        """Return the class of each row."""
        return self.classes_[self(self._standardised(x)).argmax(1).numpy()]

    @property
    def size(self) -> int:
        """Number of parameters of the fitted head."""
        return sum(p.numel() for p in self.parameters())

    def _standardised(self, x: Float[np.ndarray, "row dim"]) -> Tensor:
        return torch.from_numpy(self.scale.transform(x)).float()

    def _build(self) -> nn.Module:
        lines, n = self.widths, len(self.classes_)
        dim = self.dim
        if not self.apart:
            wanted = _fused_size(lines, dim, n)
            lines = (sum(lines),)
            dim = min(range(1, 1 + wanted), key=lambda d: abs(_fused_size(lines, d, n) - wanted))
        self.fusion, self.last = SourceFusion(lines, dim), nn.Linear(dim, n)
        return self


def lines_heads(
    states: Mapping[str, Values], n_lines: int, hidden: int, seed: int
) -> dict[str, LinesHead]:
    """Return hidden layers of each source, and such of all at once, of about as many parameters.

    Parameters
    ----------
    states : mapping of str to (row, dim)
        States of each source; those of "lines" hold ``n_lines`` lines side by side.
    n_lines : int
    hidden : int
        Width of the hidden layers; 0 gives no head.
    seed : int

    Raises
    ------
    InputError
        If ``hidden`` is negative.
    """
    if hidden < 0:
        raise InputError(f"feature_fusion: expected hidden=0 or more, got {hidden}.")
    if not hidden:
        return {}
    widths = list[int]()
    for name, x in states.items():
        n = n_lines if name == "lines" else 1
        widths += n * [x.shape[1] // n]
    return {
        arm: LinesHead(widths, hidden, apart, seed=seed)
        for arm, apart in ((OWN_LAYERS, True), (JOINED_LAYERS, False))
    }


def _fused_size(widths: Sequence[int], dim: int, n_classes: int) -> int:
    """Return the number of parameters of hidden layers of each line, of all, and of the head."""
    own = sum((width + 1) * dim for width in widths)
    return own + (len(widths) * dim + 1) * dim + (dim + 1) * n_classes


def linear_head(strength: float = 0.1, *between: Any) -> Any:
    """Return a logistic regression on standardised rows, after the steps ``between``."""
    head = LogisticRegression(C=strength, max_iter=500)
    return make_pipeline(StandardScaler(), *between, head)


def weights_of(head: Any, x: Any, label: Any) -> int:
    """Return how many weights a linear head has that is fitted to these rows.

    Parameters
    ----------
    head : sklearn estimator
        A pipeline that ends in a logistic regression; a copy of it is fitted.
    x : (row, ...)
    label : (row,)
    """
    copy: Any = clone(head)
    last = copy.fit(x, label)[-1]
    return last.coef_.size + last.intercept_.size


def head_accuracy(
    head: Any, x: Float[Tensor, "row dim"], label: Int[Tensor, "row"], n_fit: int
) -> float:
    """Return the accuracy of a head on the rows after ``n_fit``, fitted to those before."""
    states, truth = x.numpy(), label.numpy()
    return float(head.fit(states[:n_fit], truth[:n_fit]).score(states[n_fit:], truth[n_fit:]))


def strongest_accuracy(x: Float[Tensor, "row dim"], label: Int[Tensor, "row"], n_fit: int) -> float:
    """Return the accuracy on the rows after ``n_fit`` of the best of three kinds of probe.

    Linear, nearest neighbours and a support vector machine with a radial kernel; five folds of the
    rows before choose among them. Say that something is absent from states by this accuracy: what
    lies in a length or on a ring escapes a linear probe.
    """
    states, truth = x.double().numpy(), label.numpy()
    fit = states[:n_fit], truth[:n_fit]
    probes = [
        linear_head(),
        make_pipeline(StandardScaler(), KNeighborsClassifier(9)),
        make_pipeline(StandardScaler(), SVC(C=10.0)),
    ]
    best = max(probes, key=lambda probe: float(cross_val_score(probe, *fit, cv=5).mean()))
    return float(best.fit(*fit).score(states[n_fit:], truth[n_fit:]))


def character_head() -> Any:
    """Return a logistic regression on counts of one to three characters of a text."""
    counts = TfidfVectorizer(analyzer="char", ngram_range=CHARACTERS, max_features=3000)
    return make_pipeline(counts, LogisticRegression(C=10))


def doubt_of(recipe: str, score: str, found: Any, wrong: Any, learns: Any) -> Any:
    """Return a classifier's uncertainty on each row; higher = less certain.

    Parameters
    ----------
    recipe : str
        Named in errors.
    score : {"entropy", "margin", "states"}
        Of its answer, the lead of the first class over the second, or a probe of its last states.
    found : what ``sonde.gather`` returns
    wrong, learns : bool array (row,)
        Where it errs, and the rows that a probe may learn from.

    Raises
    ------
    InputError
        If there are too few errors for a probe.
    """
    chance = found.logits.double().softmax(1)
    if score == "entropy":
        return (-(chance * chance.clamp(min=1e-300).log()).sum(1)).numpy()
    if score == "margin":
        return (1 - chance.topk(2, dim=1).values @ chance.new_tensor([1.0, -1.0])).numpy()
    if min(wrong[learns].sum(), (~wrong[learns]).sum()) < 5:
        raise InputError(
            f"{recipe}: expected a model that errs on five or more rows and is right on five or "
            "more of the half that learns, for a probe. Take score='entropy'."
        )
    x, probe, doubt = found.last.numpy(), linear_head(), np.empty(len(found))
    apart: Any = cross_val_predict(probe, x[learns], wrong[learns], method="predict_proba")
    doubt[learns] = apart[:, 1]
    doubt[~learns] = probe.fit(x[learns], wrong[learns]).predict_proba(x[~learns])[:, 1]
    return doubt


class SetHead(nn.Module):
    """Attention over the states of a set, a learned query that reads it, and a linear head.

    Parameters
    ----------
    order : int
        Of the attention.
    dim, steps : int
        Width and steps of training.
    seed : int, default=0
    """

    def __init__(self, order: int, dim: int = 32, steps: int = 300, seed: int = 0) -> None:
        super().__init__()
        self.order, self.dim, self.steps, self.seed = order, dim, steps, seed

    def forward(self, views: Tensor) -> Tensor:
        """Return the logits of sets (set, view, dim)."""
        h = self.first(views)
        return self.last(self.join(h + self.mix(h))[:, 0])

    def fit(self, views: Tensor, label: Any) -> "SetHead":
        """Train on random sets of one to all of the views, drawn again in each step."""
        self.classes_, number = np.unique(label, return_inverse=True)
        shown, target = views.float(), torch.from_numpy(number)
        drawn(lambda: self._build(shown.shape[2]), self.seed)

        def loss(rows: Tensor) -> Tensor:
            n = shown.shape[1]
            some = torch.randperm(n)[: int(torch.randint(1, n + 1, ()))]
            return cross_entropy(self(shown[rows][:, some]), target[rows])

        minimise(loss, self.parameters(), len(shown), steps=self.steps, seed=self.seed)
        return self.eval()

    @torch.no_grad()
    def predict(self, views: Tensor) -> Any:
        """Return the class of each set."""
        return self.classes_[self(views.float()).argmax(1).numpy()]

    def _build(self, width: int) -> nn.Module:
        self.first = nn.Linear(width, self.dim)
        self.mix = Attention(self.dim, 4, order=self.order)
        self.join = Readout([self.dim], self.dim, "queries")
        self.last = nn.Linear(self.dim, len(self.classes_))
        return self


def folds_of(label: Any, owner: Any, folds: int, seed: int) -> list[tuple[Any, Any]]:
    """Return the rows of stratified folds that divide no group; groups of one row are rows."""
    how: dict[str, Any] = {"shuffle": True, "random_state": seed}
    if len(np.unique(owner)) == len(owner):
        return [*StratifiedKFold(folds, **how).split(np.zeros(len(label)), label)]
    return [*StratifiedGroupKFold(folds, **how).split(np.zeros(len(label)), label, owner)]


def chosen_apart(
    heads: dict[str, tuple[Any, Any]], is_made: Any, folds: int, seed: int, owner: Any
) -> Any:
    """Return each labelled row's score by the head that is best on all other folds.

    Scores are ranks within a fold, as the heads of two folds have scales of their own. No group
    (``owner``) is in two folds.
    """
    known = len(is_made)
    scores = np.zeros(known)
    for chosen, held in folds_of(is_made, owner, folds, seed + 1):
        inner = folds_of(is_made[chosen], owner[chosen], folds, seed)
        how: dict[str, Any] = {"cv": inner, "method": "decision_function"}
        value = {
            name: auroc(
                cross_val_predict(head, x[chosen], is_made[chosen], **how),
                is_made[chosen],
                resamples=2,
            ).value
            for name, (head, x) in heads.items()
        }
        head, x = heads[max(heads, key=lambda name: value[name])]
        made = head.fit(x[:known][chosen], is_made[chosen]).decision_function(x[:known][held])
        scores[held] = rankdata(made) / (len(held) + 1)
    return scores


def said_by_kind(states: Values, label: Values, kind: Values, kept: Values, held: Values) -> Values:
    """Return the predicted classes of test rows, from a head that is fitted for each kind of row.

    A kind with one class among its training rows gets that class; one without rows the most
    frequent class of all.
    """
    said = np.empty(len(held), label.dtype)
    for one in {*kind[held]}:
        own, judged = kept[kind[kept] == one], kind[held] == one
        usual = Counter(label[own] if len(own) else label[kept]).most_common(1)[0][0]
        said[judged] = usual
        if len({*label[own]}) > 1:
            said[judged] = linear_head().fit(states[own], label[own]).predict(states[held][judged])
    return said
