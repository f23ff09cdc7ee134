"""Compressors of rows of keys and values, each trained to one loss, and what they overwrite.

Every key has a usual value, which nine in ten rows give it; the others are planted contradictions.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sonde.measure import compression_fidelity, participation_ratio
from sonde_studies._separation import rank_correlation
from sonde_studies.arms import note

KEYS, VALUES, USUAL, MEMORY = 16, 8, 0.9, 6
LOSS, EVERY, BATCH, RATE = 0.3, 5, 256, 2e-3


def usual_values(seed: int) -> Int[Tensor, "key"]:
    """Return the usual value of each key."""
    return torch.randint(VALUES, (KEYS,), generator=torch.Generator().manual_seed(seed))


def texts_of(usual: Int[Tensor, "key"], n: int, draw: torch.Generator) -> Int[Tensor, "text key"]:
    """Return texts with a value for each key, mostly the usual value."""
    other = (usual + torch.randint(1, VALUES, (n, len(usual)), generator=draw)) % VALUES
    return torch.where(torch.rand(n, len(usual), generator=draw) < USUAL, usual, other)


def _net(width: int) -> nn.ModuleDict:
    ends = KEYS * VALUES
    return nn.ModuleDict(
        {
            "compress": nn.Sequential(
                nn.Linear(ends, width), nn.ReLU(), nn.Linear(width, MEMORY), nn.Tanh()
            ),
            "decode": nn.Sequential(nn.Linear(MEMORY, width), nn.ReLU(), nn.Linear(width, ends)),
        }
    )


def _said(
    net: nn.ModuleDict, texts: Int[Tensor, "text key"]
) -> tuple[Float[Tensor, "text slot"], Float[Tensor, "text key value"]]:
    """Return each text's memory, and the decoder's log-probabilities."""
    memory = net["compress"](functional.one_hot(texts, VALUES).float().flatten(1))
    logits = net["decode"](memory).unflatten(1, (KEYS, VALUES))
    return memory, logits.log_softmax(-1)


def _loss(net: nn.ModuleDict, texts: Tensor) -> Tensor:
    return functional.nll_loss(_said(net, texts)[1].flatten(0, 1), texts.flatten())


@torch.enable_grad()
def trained(
    usual: Tensor, fresh: Tensor, width: int, seed: int, steps: int
) -> tuple[nn.ModuleDict, int]:
    """Return a compressor trained to the given loss on new texts, and the number of steps."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _net(width)
    note(rows=len(usual))
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        _loss(net, texts_of(usual, BATCH, draw)).backward()
        optimiser.step()
        if step % EVERY == 0 and float(_loss(net, fresh).detach()) <= LOSS:
            return net, step
    return net, steps


@torch.no_grad()
def judged(net: nn.ModuleDict, usual: Tensor, fresh: Tensor) -> dict[str, float]:
    """Return what a compressor overwrites of new texts, how sure it is, and its loss."""
    memory, said = _said(net, fresh)
    entropy = -(said.exp() * said).sum(-1)
    source, decoded = fresh.tolist(), said.argmax(-1).tolist()
    found = compression_fidelity(source, decoded, _planted(usual, fresh), entropy=list(entropy))
    wrong = (said.argmax(-1) != fresh).double().mean(1)
    return {
        "overwritten": float(found),
        "entropy against drift": rank_correlation(entropy.mean(1).tolist(), wrong.tolist()),
        "copied": found.copied,
        "drift": found.drift,
        "entropy, planted": found.entropy_planted,
        "entropy, elsewhere": found.entropy_other,
        "rank": float(participation_ratio(memory)),
        "loss": float(_loss(net, fresh)),
    }


def overwritten(usual: Tensor, fresh: Tensor, decoded: Tensor) -> float:
    """Return the share of planted tokens of texts that became the usual value."""
    source = fresh.tolist(), decoded.tolist()
    return float(compression_fidelity(*source, _planted(usual, fresh)))


def _planted(usual: Tensor, fresh: Tensor) -> list[dict[int, int]]:
    prior = usual.tolist()
    return [{k: prior[k] for k in range(KEYS) if text[k] != prior[k]} for text in fresh.tolist()]
