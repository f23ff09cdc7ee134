"""Choose the direction to ablate: the candidate with the most effect and little harm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.renaming import renamed
from sonde.edit.directional_ablation import AblationDirection
from sonde.stats.divergence import kl_divergence
from sonde.tap import LiveStream, editing, live_stream


@final
@dataclass(frozen=True)
class AblationTrial:
    """Effects of a candidate direction.

    Parameters
    ----------
    site : str
        Where it was fitted.
    depth : float
        Place of the site among the candidates, 0 the first, 1 the last.
    bypass : float
        Log-odds of the behaviour on prompts that show it, with the direction out; low is good.
    induce : float
        Log-odds of the behaviour on usual prompts, with the direction added; high is good.
    kl : float
        Divergence of the answers to usual prompts, with the direction taken out, in nats.
    refused : str
        Why the candidate fails; empty if it passes.
    """

    site: str
    depth: float
    bypass: float
    induce: float
    kl: float
    refused: str


@final
@dataclass(frozen=True, eq=False)
class AblationChoice:
    """The chosen direction, and the effects of every candidate.

    Parameters
    ----------
    site : str
        Site of the chosen direction.
    direction : AblationDirection
        Chosen direction.
    trials : tuple of AblationTrial
        In the order of the candidates.
    plain : (float, float)
        Log-odds of the behaviour without an edit, on prompts that show it and on usual prompts.
    targets : tuple of int
        Tokens or classes that make up the behaviour.
    """

    site: str
    direction: AblationDirection
    trials: tuple[AblationTrial, ...]
    plain: tuple[float, float]
    targets: tuple[int, ...]


@renamed(max_kl="kl_limit", neutral="usual")
def choose_ablation(
    model: Model,
    candidates: Mapping[str, AblationDirection],
    showing: Inputs,
    neutral: Inputs,
    *,
    targets: Sequence[int] | None = None,
    sites: str | Sequence[str] = "blocks",
    max_kl: float = 0.1,
    deepest: float = 0.8,
) -> AblationChoice:
    """Return the candidate that best removes the behaviour, among those that can induce it.

    Each direction is taken out at all ``sites``, on prompts that show the behaviour and on usual
    prompts, and added at its own site on usual prompts. A direction passes if it lowers the
    behaviour when taken out, raises it when added, leaves usual answers alone (``max_kl``) and
    lies in the first part of the model (``deepest``). Of these the direction of lowest log-odds
    after removal is taken.

    Parameters
    ----------
    model : Model
        A classifier, or a language model whose next token is looked at.
    candidates : mapping of str to AblationDirection
        By site, in order of execution; ``{site: result for (_, site), result in fitted}``.
    showing, neutral : Inputs
        Prompts with and without the behaviour, better not those of the fit.
    targets : sequence of int, optional
        Tokens or classes that make up the behaviour; by default those that are likelier on
        ``showing`` than on ``neutral``.
    sites : pattern or several, default="blocks"
        Where directions are taken out.
    max_kl : float, default=0.1
        Largest KL divergence, in nats, of the answers to ``neutral`` after the removal.
    deepest : float, default=0.8
        Candidates after this share of the sites are not taken.

    Raises
    ------
    InputError
        If there is no candidate, or no candidate passes; the message says why each failed.
    """
    if not candidates or not len(showing) or not len(neutral):
        raise InputError(
            "choose_ablation: expected candidates and prompts of both kinds, got "
            f"{len(candidates)} candidates, {len(showing)} and {len(neutral)} prompts. Give all."
        )
    site = next(iter(candidates)).partition("|")[0]
    # One probe forward for each kind of prompts serves all candidates: no edit changes a shape.
    shown_stream, usual_stream = (
        live_stream(model, prompts, site, logits=True, logits_asked=True)
        for prompts in (showing, neutral)
    )
    plain, plain_usual = _answers(shown_stream), _answers(usual_stream)
    behaviour = _behaviour(plain, plain_usual, targets)
    before = (_odds(plain, behaviour), _odds(plain_usual, behaviour))
    trials: list[AblationTrial] = []
    for number, (name, direction) in enumerate(candidates.items()):
        depth = number / max(len(candidates) - 1, 1)
        if "dead" in direction.flags:
            trials.append(AblationTrial(name, depth, math.nan, math.nan, math.nan, "no direction"))
            continue
        with editing(model, direction.edit(), sites, here=True):
            bypass = _odds(_answers(shown_stream), behaviour)
            after = _answers(usual_stream)
        with editing(model, direction.induce(), name, here=True):
            induce = _odds(_answers(usual_stream), behaviour)
        kl = float(kl_divergence(plain_usual, after).mean())
        why = [f"does not remove it ({bypass:.3g} after {before[0]:.3g})"] * (bypass >= before[0])
        why += [f"does not induce it ({induce:.3g} after {before[1]:.3g})"] * (induce <= before[1])
        why += [f"KL {kl:.3g} above {max_kl:g}"] * (kl > max_kl)
        why += [f"at depth {depth:.2f}, beyond {deepest:g}"] * (depth > deepest)
        trials.append(AblationTrial(name, depth, bypass, induce, kl, ", ".join(why)))
    passed = [trial for trial in trials if not trial.refused]
    if not passed:
        refused = "; ".join(f"{t.site}: {t.refused}" for t in trials)
        raise InputError(
            f"choose_ablation: none of {len(trials)} candidates passes. {refused}. Give other "
            "prompts or targets, or raise max_kl."
        )
    best = min(passed, key=lambda trial: trial.bypass)
    chosen = tuple(int(i) for i in behaviour.nonzero().flatten())
    return AblationChoice(best.site, candidates[best.site], tuple(trials), before, chosen)


def _answers(stream: LiveStream) -> Float[Tensor, "example answer"]:
    """Return the log-probabilities of each example's class or next token, in planned order."""
    parts: list[Tensor] = []
    order: list[Tensor] = []
    for batch in stream.batches(0, len(stream)):
        if batch.logits is None:
            raise InputError(
                "choose_ablation: the model returns no logits, so its answers cannot be "
                "compared. Take "
                "a classifier or a causal language model."
            )
        parts.append(batch.logits.double().cpu().log_softmax(1))
        order.append(batch.order)
    return torch.cat(parts)[torch.cat(order).argsort()]


def _behaviour(
    showing: Float[Tensor, "example answer"],
    usual: Float[Tensor, "example2 answer"],
    targets: Sequence[int] | None,
) -> Bool[Tensor, "answer"]:
    n = showing.shape[1]
    if targets is None:
        return showing.exp().mean(0) > usual.exp().mean(0)
    chosen = torch.zeros(n, dtype=torch.bool)
    if not targets or min(targets) < 0 or max(targets) >= n or len({*targets}) >= n:
        raise InputError(
            f"choose_ablation: expected targets below {n}, some but not all answers, got "
            f"{list(targets)}. Name tokens or classes of the model."
        )
    chosen[list(targets)] = True
    return chosen


def _odds(log_p: Float[Tensor, "example answer"], behaviour: Bool[Tensor, "answer"]) -> float:
    """Return the mean log-odds of the behaviour."""
    odds = log_p[:, behaviour].logsumexp(1) - log_p[:, ~behaviour].logsumexp(1)
    return float(odds.mean())
