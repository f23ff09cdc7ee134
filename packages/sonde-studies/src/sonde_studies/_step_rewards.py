"""Rewards for right answers as the teacher of a latent step: group policy gradients."""

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.layers import LatentLoop
from sonde_studies._language import policy_loss
from sonde_studies.arms import note

QUESTIONS, ANSWERS, DRIFT = 32, 8, 0.005
RATES = {"model": 1e-3, "gates": 2e-2, "rate": 2e-1}
"""Of Adam for the parts of ``LatentLoop``, in the published proportions."""

Rolled = tuple[Int[Tensor, "row word"], Float[Tensor, "row word"], Float[Tensor, "row token"]]
Roll = Callable[[LatentLoop, Tensor, Tensor | None, torch.Generator | None], Rolled]
"""Returns words, their log-probabilities and the answer's logits, as ``LatentLoop.rollout``."""


def looped(
    net: LatentLoop,
    ids: Int[Tensor, "row token"],
    words: Int[Tensor, "row word"] | None = None,
    draw: torch.Generator | None = None,
) -> Rolled:
    """Return what ``net.rollout`` returns; no words, if the loop mixes none."""
    if net.mix == "gate":
        return net.rollout(ids, words=words, draw=draw)
    logits = net(ids)
    return ids[:, :0], logits[:, :0], logits


def word_alone(
    net: LatentLoop,
    ids: Int[Tensor, "row token"],
    words: Int[Tensor, "row word"] | None = None,
    draw: torch.Generator | None = None,
) -> Rolled:
    """Return what ``net.rollout`` returns, with the plain word in place of the latent step."""
    chance: Tensor = (net.model(ids).logits[:, -1] / net.temperature).log_softmax(1)
    if words is None:
        likeliest = chance.argmax(1, keepdim=True)
        words = torch.multinomial(chance.exp(), 1, generator=draw) if draw else likeliest
    return words, chance.gather(1, words), net.model(torch.cat([ids, words], 1)).logits[:, -1]


def learn_by_reward(
    net: LatentLoop,
    roll: Roll,
    ids: Int[Tensor, "row token"],
    answer: Int[Tensor, "row"],
    *,
    updates: int,
    seed: int,
    earned: bool = True,
    questions: int = QUESTIONS,
    rates: Mapping[str, float] = RATES,
) -> None:
    """Train a loop in place by rewards of sampled answers.

    Parameters
    ----------
    net : LatentLoop
    roll : callable
        How the loop comes to an answer.
    ids : Int[Tensor, "row token"]
        Questions to draw from.
    answer : Int[Tensor, "row"]
        Place of the right answer among the logits of ``roll``.
    updates : int
    seed : int
        Draws questions, words and answers.
    earned : bool, default=True
        False deals the rewards of each group anew among its answers.
    questions : int
        Of one update; each is answered ``ANSWERS`` times.
    rates : mapping of float
        Of Adam, for the parts of the loop.
    """
    draw, start = torch.Generator().manual_seed(seed), deepcopy(net)
    named = [*net.named_parameters()]
    parts = {part: [p for n, p in named if n.split(".")[0] == part] for part in rates}
    note(rows=len(ids))
    adam = torch.optim.Adam([{"params": p, "lr": rates[part]} for part, p in parts.items() if p])
    for _ in range(updates):
        rows = torch.randint(len(ids), (questions,), generator=draw)
        asked, wanted = (x[rows].repeat_interleave(ANSWERS, 0) for x in (ids, answer))
        with torch.no_grad():
            words, _, logits = roll(net, asked, None, draw)
            chance = (logits / net.temperature).softmax(1)
            said = torch.multinomial(chance, 1, generator=draw)
            before = _likely(start, roll, asked, words, said)
        reward = (said[:, 0] == wanted).float().reshape(-1, ANSWERS)
        if not earned:
            reward = reward.gather(1, torch.rand(reward.shape, generator=draw).argsort(1))
        likely = _likely(net, roll, asked, words, said)
        apart = before - likely
        drift = (apart.exp() - apart - 1).mean()
        own = torch.ones_like(likely, dtype=torch.bool)
        adam.zero_grad()
        (policy_loss(likely, own, reward, standard=True) + DRIFT * drift).backward()
        adam.step()


def _likely(net: LatentLoop, roll: Roll, ids: Tensor, words: Tensor, said: Tensor) -> Tensor:
    """Return the log-probabilities of the words and of the answer after them."""
    _, told, logits = roll(net, ids, words, None)
    chance = (logits / net.temperature).log_softmax(1)
    return torch.cat([told, chance.gather(1, said)], 1)
