"""Test whether states of a finite-state machine get separate codes, and codes set states.

A language model reads walks through a random machine of 100 states, each written as two digits and
followed by one of four. What comes next depends on both digits, so the state is nowhere in the text
as one token. Its last MLP is replaced by 150 codes, one for each place.
"""

from copy import deepcopy
from statistics import fmean
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde.explain import Codebook, CodebookResult
from sonde.tap import Tap
from sonde_studies._gpt2 import next_token_loss
from sonde_studies._language import descend, language_model
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

BASE, STATES, NEXT, LENGTH, BATCH = 10, 100, 4, 10, 64
SITE, CODES = "transformer.h.1.mlp", 150
STEPS, FINE, RATE, JUDGED = 900, 500, 5e-4, 8
TRIED = 25


@final
class CodebookStudy(Study):
    """A small language model of walks through a finite-state machine with known states."""

    name = "codebook"
    title = "do states of a machine get codes of their own, and does a code set the state?"
    paper = "tamkin2023codebook"
    fidelity = (
        "reconstructed: one codebook after the last MLP, by distance; in the original one for "
        "each head and MLP of four layers, by inner product"
    )
    data = "walks through 100 states of two digits, each followed by one of four at random"
    claims = (
        Claim("own codes", "Among rows that have a code, more than half are of one state.",
              "share of rows that are of the commonest state of their code", above=0.5),
        Claim("codes set states",
              "Where the code of a state is put, the next digit is one that can follow that state.",
              "probability of such digits, less that without", above=0.2,
              arms=("code put", "no code put")),
        Claim("little is lost",
              "With codes the loss is less than a tenth above that of the model without, trained "
              "on for as many steps.",
              "nats to spare; codes add a tenth of the parameters",
              arms=("codes", "as many steps without codes")),
    )  # fmt: skip
    null = Claim(
        "a code of another state",
        "Where the code of a state drawn at random is put, these digits are as likely as without.",
        "probability of such digits, less that without",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the model, insert codes, and match codes with states."""
        draw = torch.Generator().manual_seed(seed)
        following = torch.stack([torch.randperm(STATES, generator=draw) for _ in range(STATES)])
        following = following[:, :NEXT]
        words = [str(i) for i in range(BASE)]
        model = language_model(words, 2 * LENGTH, seed, layers=2)
        tick("training")

        def batch() -> tuple[Tensor, Tensor]:
            ids, _ = walks(following, BATCH, draw)
            return ids, torch.ones_like(ids, dtype=torch.bool)

        descend(model, batch, 10 if tiny else STEPS)
        tick("codes")
        method = Codebook(n_codes=CODES, k=1, rate=RATE, steps=5 if tiny else FINE, seed=seed)
        batches = [walks(following, BATCH, draw)[0] for _ in range(method.steps + JUDGED)]
        found = method.fit(model, SITE, batches.__getitem__, _loss)
        tick("as many steps without codes")
        plain = _trained_on(model.module, batches, method)
        tick("looking")
        ids, states = walks(following, 16 if tiny else 512, draw)
        table = counts(found, ids, states)
        code_of = table.argmax(0)
        tried = torch.randperm(STATES, generator=draw)[: 3 if tiny else TRIED].tolist()
        other = torch.randperm(STATES, generator=draw)
        for name in ("code put", "no code put"):
            note_for(name, rows=min(64, len(ids)))
        rises = [self._rise(found, following, ids[:64], code_of[s], s) for s in tried]
        chance = [self._rise(found, following, ids[:64], code_of[other[s]], s) for s in tried]
        return {
            "own codes": float(table.amax(1).sum() / table.sum()),
            "codes set states": sum(rises) / len(rises),
            "little is lost": 1.1 * plain - found.loss,
            "a code of another state": sum(chance) / len(chance),
            "share of rows that have the commonest code of their state": float(
                table.amax(0).sum() / table.sum()
            ),
            "loss, nats | before codes": found.loss_before,
            "loss, nats | trained on without codes": plain,
            "loss, nats | with codes": found.loss,
            "codes used": float((found.usage[SITE] > 0).sum()),
        }

    def _rise(
        self, found: CodebookResult, following: Tensor, ids: Tensor, code: Tensor, state: int
    ) -> float:
        """Return the increase of the probability of a state's digits when its code is inserted."""
        digits = 1 + following[state] // BASE
        forced = found.codes[SITE].activate(int(code))
        after = [_next(found, ids, how)[:, digits.unique()] for how in ({SITE: forced}, {})]
        return float((after[0] - after[1]).sum(1).mean())


def walks(following: Tensor, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the tokens of walks, two for each state, and the states."""
    states = [torch.randint(STATES, (n,), generator=draw)]
    while len(states) < LENGTH:
        states.append(following[states[-1], torch.randint(NEXT, (n,), generator=draw)])
    walked = torch.stack(states, 1)
    return 1 + torch.stack([walked // BASE, walked % BASE], 2).flatten(1), walked


def counts(found: CodebookResult, ids: Tensor, states: Tensor) -> Tensor:
    """Return the number of second digits of each state with each code."""
    with torch.no_grad(), Tap(found.module, SITE, reducer=None) as tap:
        found.module(ids)
    (rows,) = tap.rows.values()
    codes = found.codes[SITE].chosen(rows)[:, 1::2, 0].flatten()
    pairs = codes * STATES + states.flatten()
    return torch.bincount(pairs, minlength=CODES * STATES).view(CODES, STATES).double()


@torch.enable_grad()
def _trained_on(given: nn.Module, batches: list[Tensor], method: Codebook) -> float:
    """Return the loss on the last batches of a model trained on the first, as ``Codebook`` does."""
    module = deepcopy(given)
    adam = torch.optim.Adam(module.parameters(), lr=method.rate)
    for ids in batches[: method.steps]:
        adam.zero_grad()
        _loss(module(ids), ids).backward()
        adam.step()
    with torch.no_grad():
        return fmean(float(_loss(module(ids), ids)) for ids in batches[method.steps :])


def _loss(out: Any, ids: Tensor) -> Tensor:
    return next_token_loss(out.logits, ids)


def _next(found: CodebookResult, ids: Tensor, changed: Any) -> Tensor:
    """Return the next-token probabilities after each text."""
    with found.active(changed) as module, torch.no_grad():
        return module(ids).logits[:, -1].softmax(-1)
