"""A latent step that says more than a sampled word: all cells that a search has reached.

A question names a cell with two arrows and asks whether either leads to a goal. A word names one
of the two cells ahead, the mean of the words' embeddings both. A decoder of one block learns by
imitation to name either cell and to answer as well as that cell allows. It goes on by rewards for
right answers: with the word alone, with the mean of embeddings alone, with a gated mix of both, or
without a step.
"""

from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import LatentLoop
from sonde_studies._frontiers import ARROWS, CELL, FIT, NO, best_with_one, decoder, frontiers
from sonde_studies._step_rewards import RATES, Roll, Rolled, learn_by_reward, looped, word_alone
from sonde_studies.arms import note_again, note_for
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

IMITATE, BATCH, RATE = 300, 128, 3e-3
UPDATES, QUESTIONS, TINY = 150, 16, 2
SLOWER = {part: rate / 2 for part, rate in RATES.items()}
LOOP = {"n_steps": 1, "feedback": "expected_embedding", "temperature": 1.0, "a_range": (0.5, 0.95)}
ORDER = 10_000
"""Added to the seed of questions and samples."""


@final
class LatentBeliefStudy(Study):
    """A word, a mean of embeddings and a gated mix of both, each trained by rewards."""

    name = "latent-belief"
    title = "do rewards teach a decoder to use a step that names several cells at once?"
    paper = "yue2025hrpo"
    fidelity = (
        "a decoder of one block, one thought, half the rates; gates that start at .5 to .95 of the "
        "word in place of .99 to .999"
    )
    data = "simulated: six cells with two arrows each, two of them goals"
    claims = (
        Claim("learns", "Rewards make a decoder with a gated step answer correctly more often.",
              "accuracy, gated after rewards less before",
              arms=("gated", "gated, before")),
        Claim("mix", "With a gated step a decoder answers correctly more often than with a "
              "sampled word alone.",
              "accuracy after rewards, gated (a tenth more parameters) less word",
              arms=("gated", "word")),
        Claim("used", "It uses the mixture: with the word at the same length in its place it is "
              "right less often.", "accuracy, gated by rewards less the same with the word",
              arms=("gated", "gated, the word in its place")),
        Claim("gate", "The gated mix does as well as the mean of embeddings alone, to five points.",
              "0.05 less accuracy of the mean over the mix, whose gate adds a tenth of the "
              "parameters, after rewards",
              arms=("gated", "mean")),
        Claim("step", "It answers correctly more often than a decoder without a step.",
              "accuracy after rewards, gated (a tenth more parameters) less no step",
              arms=("gated", "no step")),
        Claim("opens", "Rewards open the gate: it lets more of the mean in than before.",
              "mean weight of the mixture, gated after rewards less before",
              arms=("gated", "gated, before")),
    )  # fmt: skip
    null = Claim(
        "by lot",
        "A decoder that imitates answers by lot gives none of other questions.",
        "accuracy of the word alone, less 0.5",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Teach a decoder what words mean, and go on by rewards in each way."""
        ids, cells, goal = frontiers(seed)
        answer = goal.any(1).long()
        tick("start")
        model = drawn(decoder, seed)
        _imitate(model, ids, cells, answer, TINY if tiny else IMITATE, seed)
        found = {
            "oracle, both cells": float((goal[FIT:].any(1) == answer[FIT:]).double().mean()),
            "oracle, one cell": float(best_with_one(ids[FIT:], goal[FIT:]).double().mean()),
        }
        used = opens = 0.0
        for arm, made, roll in (
            ("gated", {"mix": "gate"}, looped),
            ("word", {"mix": "gate"}, word_alone),
            ("mean", {}, looped),
            ("no step", {"n_steps": 0}, looped),
        ):
            tick(arm)
            net = drawn(lambda made=made: LatentLoop(deepcopy(model), **LOOP | made), seed)
            note_for(f"{arm}, before", updates=0)
            found[f"start, {arm}"] = _accuracy(net, roll, ids, answer)
            before = _openness(net, ids) if arm == "gated" else 0.0
            learn_by_reward(
                net, _answers(roll), ids[:FIT], answer[:FIT], updates=TINY if tiny else UPDATES,
                seed=seed + ORDER, questions=QUESTIONS, rates=SLOWER,
            )  # fmt: skip
            found[arm] = _accuracy(net, roll, ids, answer)
            if arm == "gated":
                note_again("gated, the word in its place", arm)
                used = found[arm] - _accuracy(net, _word_as_long, ids, answer)
                opens = _openness(net, ids) - before
        tick("answers by lot")
        best = found["gated"]
        return {
            "learns": best - found["start, gated"],
            "mix": best - found["word"],
            "used": used,
            "gate": 0.05 - (found["mean"] - best),
            "step": best - found["no step"],
            "opens": opens,
            "by lot": by_lot(ids, cells, seed, TINY if tiny else IMITATE),
            **{f"accuracy | {arm}": value for arm, value in found.items()},
        }


def by_lot(ids: Tensor, cells: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of a decoder on answers by lot of questions it did not see, less 0.5."""
    answer, model = labels_by_lot(ids, 2, seed), drawn(decoder, seed)
    _imitate(model, ids, cells, answer, steps, seed)
    net = drawn(lambda: LatentLoop(model, **LOOP | {"mix": "gate"}), seed)
    return _accuracy(net, word_alone, ids, answer) - 0.5


def _imitate(
    model: nn.Module, ids: Tensor, cells: Tensor, answer: Tensor, steps: int, seed: int
) -> None:
    """Teach a decoder to name one cell ahead at random, and to answer from there."""

    def loss(rows: Tensor) -> Tensor:
        word = CELL + cells[rows].gather(1, torch.randint(ARROWS, (len(rows), 1)))
        logits = model(torch.cat([ids[rows], word], 1)).logits[:, -2:]
        said = torch.cat([word, NO + answer[rows, None]], 1)
        return cross_entropy(logits.flatten(0, 1), said.flatten())

    minimise(loss, model.parameters(), FIT, steps=steps, seed=seed, rate=RATE, batch=BATCH)


def _answers(roll: Roll) -> Roll:
    """Return a way to an answer with the logits of both answers alone."""

    def of_two(
        net: LatentLoop, ids: Tensor, words: Tensor | None, draw: torch.Generator | None
    ) -> Rolled:
        words, told, logits = roll(net, ids, words, draw)
        return words, told, logits[:, NO:]

    return of_two


def _word_as_long(
    net: LatentLoop, ids: Tensor, words: Tensor | None, draw: torch.Generator | None
) -> Rolled:
    """Return what ``looped`` returns, with the word's embedding as long as the mix in its place."""
    words, told, _ = net.rollout(ids, words=words, draw=draw)
    table, mix = net.model.get_input_embeddings(), net.latents(ids)
    word = table(words)
    word = word / word.norm(dim=2, keepdim=True) * mix.norm(dim=2, keepdim=True)
    logits = net.model(inputs_embeds=torch.cat([table(ids), word], 1)).logits[:, -1]
    return words, told, logits


@torch.no_grad()
def _openness(net: LatentLoop, ids: Tensor) -> float:
    return float(net.openness(ids[FIT:]).mean())


@torch.no_grad()
def _accuracy(net: LatentLoop, roll: Roll, ids: Tensor, answer: Tensor) -> float:
    logits = _answers(roll)(net, ids[FIT:], None, None)[2]
    return float((logits.argmax(1) == answer[FIT:]).double().mean())
