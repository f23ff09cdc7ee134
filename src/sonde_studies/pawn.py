"""Do learned weights over token metrics tell machine text, and on another domain too."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from sonde import Model, Stream, load, read
from sonde.core import Scorer
from sonde.detect import PAWN, LinearProbe, TokenStatistics
from sonde_studies._separation import area
from sonde_studies._written import HUMAN, MACHINE, Texts, code, prose, written
from sonde_studies.study import Claim, Figures, Study, Tick

DOMAINS = {"code": code, "prose": prose}
SEEN, UNSEEN = DOMAINS
SMALL = {"features": 32, "gates": 32, "hidden": 32, "depth": 2, "batch": 32, "rate": 3e-3}


@dataclass(frozen=True)
class Sizes:
    """Texts of each writer, tokens of a beginning and of a text, walks of the training."""

    fit: int = 256
    test: int = 128
    prompt: int = 16
    length: int = 144
    epochs: int = 15


TINY_SIZES = Sizes(12, 8, 4, 24, 2)


@dataclass(frozen=True)
class Tokens:
    """Every predicted token of some texts: the state behind it, its metrics, where it stands."""

    states: Tensor
    metrics: Tensor
    text: Tensor
    position: Tensor
    label: Tensor

    def means(self, rows: Tensor) -> Tensor:
        """Return the mean of rows over each text."""
        n = len(self.label)
        total = torch.zeros(n, rows.shape[1]).index_add_(0, self.text, rows.float())
        return total / torch.bincount(self.text, minlength=n)[:, None]

    def stateless(self) -> "Tokens":
        """Return the same tokens with zeros for states, so that weights see places alone."""
        return replace(self, states=torch.zeros_like(self.states))

    def separated(self, score: Tensor) -> float:
        """Return how well a score of texts tells those of machines."""
        return area(score[self.label == HUMAN], score[self.label == MACHINE])


Score = Callable[[Tokens], Tensor]


@final
class PAWNStudy(Study):
    """Ends of texts that the shipped language model wrote, told from those of people."""

    name = "pawn"
    title = "do learned weights over token metrics tell machine text, on another domain too?"
    paper = "miralles2025pawn"
    fidelity = (
        "reconstructed formula at a tenth of the width; the same model writes and reads, while "
        "the original reads texts of other and larger models"
    )
    data = (
        "pieces of 144 bytes of the standard library's test files (code) and of scikit-learn's "
        "descriptions of data sets (prose); in half of them the shipped byte model wrote the last "
        "128 bytes; trained on code alone"
    )
    claims = (
        Claim(
            "weights over plain mean, code",
            "Learned weights beat a linear probe on the plain mean of the same metrics.",
            "difference of AUROC",
        ),
        Claim(
            "more so on prose",
            "They win more on a domain that was not seen.",
            "difference of differences of AUROC",
        ),
        *(
            Claim(
                f"states in the weights, {domain}",
                f"Weights that read the states beat weights that know the place alone, {domain}.",
                "difference of AUROC",
            )
            for domain in DOMAINS
        ),
        Claim(
            "states best on code",
            "States alone are the best on the domain that was seen.",
            "AUROC less the best other",
        ),
        Claim(
            "states worst on prose",
            "States alone are the worst on a domain that was not seen.",
            "AUROC of the worst other less that of states",
        ),
    )
    null = Claim("null", "Texts of people against other texts of people.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Let the model write, read all texts, train, score."""
        draw = np.random.default_rng(seed)
        sizes = TINY_SIZES if tiny else Sizes()
        model = load("sonde:stdlib")
        tick("writing and reading")
        texts = {d: _written(model, d, sizes.test, sizes, draw) for d in DOMAINS}
        learned = _written(model, SEEN, sizes.fit, sizes, draw)
        test = {d: _tokens(_reading(model, t), t) for d, t in texts.items()}
        fit = _tokens(_reading(model, learned), learned)
        tick("training")
        arms = _arms(fit, sizes.epochs, seed)
        found = {
            f"{arm} | {domain}": tokens.separated(score(tokens))
            for domain, tokens in test.items()
            for arm, score in arms.items()
        }
        gain = {d: found[f"PAWN | {d}"] - found[f"plain mean | {d}"] for d in DOMAINS}
        others = {d: [v for k, v in found.items() if _is_other(k, d)] for d in DOMAINS}
        people = arms["PAWN"](test[SEEN])[test[SEEN].label == HUMAN]
        half = len(people) // 2
        return {
            "weights over plain mean, code": gain[SEEN],
            "more so on prose": gain[UNSEEN] - gain[SEEN],
            **{
                f"states in the weights, {d}": found[f"PAWN | {d}"]
                - found[f"PAWN without states | {d}"]
                for d in DOMAINS
            },
            "states best on code": found[f"states alone | {SEEN}"] - max(others[SEEN]),
            "states worst on prose": min(others[UNSEEN]) - found[f"states alone | {UNSEEN}"],
            "null": area(people[:half], people[half:]),
            **found,
        }


def _is_other(key: str, domain: str) -> bool:
    arm, _, where = key.partition(" | ")
    return where == domain and arm in ("PAWN", "plain mean")


def _written(model: Model, domain: str, n: int, sizes: Sizes, draw: np.random.Generator) -> Texts:
    return written(model, DOMAINS[domain](), n, sizes.prompt, sizes.length, draw)


def _arms(fit: Tokens, epochs: int, seed: int) -> dict[str, Score]:
    """Return the scores of whole texts, each fitted on the same texts where it is fitted."""
    pawn, blind = (_pawn(tokens, epochs, seed) for tokens in (fit, fit.stateless()))
    n_metrics = len(pawn.conventions["metrics"])
    metrics = LinearProbe().fit(fit.means(fit.metrics[:, :n_metrics]), fit.label)
    states = LinearProbe().fit(fit.means(fit.states), fit.label)
    found: dict[str, Score] = {
        "PAWN": _by_texts(pawn),
        "PAWN without states": lambda t: _by_texts(blind)(t.stateless()),
        "plain mean": lambda t: metrics.score(t.means(t.metrics[:, :n_metrics])),
        "states alone": lambda t: states.score(t.means(t.states)),
    }
    for statistic in ("mean_nll", "fast_curvature", "lrr"):
        found[statistic] = _statistic(fit, TokenStatistics(statistic, "low"))
    return found


def _pawn(fit: Tokens, epochs: int, seed: int) -> Scorer:
    return PAWN(**SMALL, epochs=epochs, seed=seed).fit(
        {"states": fit.states, "metrics": fit.metrics},
        fit.label[fit.text],
        ids=[str(i) for i in fit.text.tolist()],
        position=fit.position,
    )


def _by_texts(scorer: Scorer) -> Score:
    def score(tokens: Tokens) -> Tensor:
        x, position = [tokens.states, tokens.metrics], tokens.position
        tokenwise = scorer.score(x, position)
        return scorer.reduced(tokenwise, tokens.text, "own", x, position).score

    return score


def _statistic(fit: Tokens, detector: TokenStatistics) -> Score:
    scorer = detector.fit(fit.metrics)

    def score(tokens: Tokens) -> Tensor:
        tokenwise = scorer.score(tokens.metrics)
        return scorer.reduced(tokenwise, tokens.text, "own", tokens.metrics).score

    return score


def _reading(model: Model, texts: Texts) -> Stream:
    each = enumerate(zip(texts.ids, texts.label, strict=True))
    items = [{"input_ids": ids, "id": str(i), "label": label} for i, (ids, label) in each]
    return read(model, items, **PAWN().reading())


def _tokens(stream: Stream, texts: Texts) -> Tokens:
    """Return the predicted tokens of texts, with the states behind them."""
    first, second = (s.key for s in stream.schema)
    parts: list[tuple[Tensor, ...]] = []
    for batch in stream:
        name = torch.tensor([int(i) for i in batch.ids])
        place = {
            (int(name[e]), int(p)): row
            for row, (e, p) in enumerate(
                zip(batch.example[first].tolist(), batch.position[first].tolist(), strict=True)
            )
        }
        here = name[batch.example[second]]
        at = batch.position[second]
        rows = [place[key] for key in zip(here.tolist(), at.tolist(), strict=True)]
        parts.append((batch.rows[first][rows].float(), batch.rows[second], here, at))
    states, metrics, text, position = (torch.cat(p) for p in zip(*parts, strict=True))
    order = torch.argsort(text * (1 << 20) + position)
    label = torch.tensor(texts.label)
    return Tokens(states[order], metrics[order], text[order], position[order], label)
