"""Test whether learned weights over token metrics detect machine text, also in other domains."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
from torch import Tensor

from sonde import load
from sonde.core import Scorer
from sonde.detect import PAWN, LinearProbe, TokenStatistics
from sonde_studies._separation import area
from sonde_studies._written import HUMAN
from sonde_studies._written_tokens import DOMAINS, Sizes, Tokens, reading_of, texts_of, tokens_with
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

SEEN, UNSEEN = DOMAINS
SMALL = {"features": 32, "gates": 32, "hidden": 32, "depth": 2, "batch": 32, "rate": 3e-3}

TINY_SIZES = Sizes(12, 8, 4, 24, 2)
Score = Callable[[Tokens], Tensor]


@final
class PAWNStudy(Study):
    """Endings written by the shipped language model, separated from human endings."""

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
    place = "byte-model"
    claims = (
        Claim(
            "weights over plain mean, code",
            "Weights that know the place alone, with more parameters, beat a linear probe on the "
            "metrics' plain mean.",
            "difference of AUROC",
            arms=("PAWN without states", "plain mean"),
        ),
        Claim(
            "more so on prose",
            "They win more on a domain that was not seen, with more parameters.",
            "difference of differences of AUROC",
            arms=("PAWN without states", "plain mean"),
        ),
        *(
            Claim(
                f"states in the weights, {domain}",
                f"Weights that read the states beat weights that know the place alone, {domain}.",
                "difference of AUROC",
                arms=("PAWN", "PAWN without states"),
            )
            for domain in DOMAINS
        ),
        Claim(
            "states best on code",
            "States alone, with fewer parameters, beat weights with states and the plain mean on "
            "the domain that was seen.",
            "AUROC less the best other",
            arms=("states alone", "PAWN"),
        ),
        Claim(
            "states worst on prose",
            "States alone, with fewer parameters, are worse than both on a domain that was not "
            "seen.",
            "AUROC of the worst other less that of states",
            arms=("states alone", "PAWN"),
        ),
    )
    null = Claim("null", "Texts of people against other texts of people.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Generate texts, read all texts, train, and score."""
        draw = np.random.default_rng(seed)
        sizes = TINY_SIZES if tiny else Sizes()
        model = load("sonde:stdlib")
        tick("writing and reading")
        texts = {d: texts_of(model, d, sizes.test, sizes, draw) for d in DOMAINS}
        learned = texts_of(model, SEEN, sizes.fit, sizes, draw)
        test = {d: tokens_with(reading_of(model, t), t) for d, t in texts.items()}
        fit = tokens_with(reading_of(model, learned), learned)
        tick("training")
        arms = _arms(fit, sizes.epochs, seed)
        found = {
            f"{arm} | {domain}": tokens.separated(score(tokens))
            for domain, tokens in test.items()
            for arm, score in arms.items()
        }
        gain = {
            d: found[f"PAWN without states | {d}"] - found[f"plain mean | {d}"] for d in DOMAINS
        }
        others = {d: [found[f"{arm} | {d}"] for arm in ("PAWN", "plain mean")] for d in DOMAINS}
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


def _arms(fit: Tokens, epochs: int, seed: int) -> dict[str, Score]:
    """Return the scores of whole texts; all fitted scores use the same texts."""
    pawn, blind = (_pawn(tokens, epochs, seed) for tokens in (fit, fit.stateless()))
    n_metrics = len(pawn.conventions["metrics"])
    metrics = LinearProbe().fit(fit.means(fit.metrics[:, :n_metrics]), fit.label)
    states = LinearProbe().fit(fit.means(fit.states), fit.label)
    size = {
        name: sum(weight.numel() for weight in scorer.values)
        for name, scorer in (("PAWN", pawn), ("PAWN without states", blind))
    }
    size |= {"plain mean": n_metrics + 1, "states alone": fit.states.shape[1] + 1}
    for name, parameters in size.items():
        note_for(name, rows=len(fit.label), parameters=parameters)
    found: dict[str, Score] = {
        "PAWN": _by_texts(pawn, _states_and_metrics),
        "PAWN without states": _by_texts(blind, lambda t: _states_and_metrics(t.stateless())),
        "plain mean": lambda t: metrics.score(t.means(t.metrics[:, :n_metrics])),
        "states alone": lambda t: states.score(t.means(t.states)),
    }
    for statistic in ("mean_nll", "fast_curvature", "lrr"):
        scorer = TokenStatistics(statistic, "low").fit(fit.metrics)
        found[statistic] = _by_texts(scorer, lambda t: (t.metrics,))
    return found


def _pawn(fit: Tokens, epochs: int, seed: int) -> Any:
    return PAWN(**SMALL, epochs=epochs, seed=seed).fit(
        {"states": fit.states, "metrics": fit.metrics},
        fit.label[fit.text],
        ids=[str(i) for i in fit.text.tolist()],
        position=fit.position,
    )


def _states_and_metrics(tokens: Tokens) -> tuple[list[Tensor], Tensor]:
    return [tokens.states, tokens.metrics], tokens.position


def _by_texts(scorer: Scorer, columns: Callable[[Tokens], tuple[Any, ...]]) -> Score:
    """Return the score of texts by a scorer of tokens that reads some of their columns."""

    def score(tokens: Tokens) -> Tensor:
        given = columns(tokens)
        return scorer.reduced(scorer.score(*given), tokens.text, "own", *given).score

    return score
