"""Information in a message of bounded entropy about hidden states."""

from typing import final

import numpy as np
import torch
from sklearn.cluster import KMeans  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde.compress import EntropyBoundedCoder
from sonde.measure import minimum_entropy_coupling
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

RATES, CODES, SMALL, WANTED = (0.2, 0.4, 0.6, 0.8, 0.95), 32, 8, 6


@final
class BoundedMessagesStudy(Study):
    """Codes of a digit net's hidden states, with unequal symbol frequencies."""

    name = "bounded-messages"
    title = "do merged symbols use a bounded rate nearly fully?"
    paper = "ebrahimi2024mecb"
    fidelity = "the paper's greedy merging is an arm; a coupling in place of its game"
    data = "digits: k-means codes, 8 and 32, of the hidden layer of a net"
    claims = (
        Claim("greedy enough", "Of 32 codes greedy merging tells the rate to 0.05 nats.",
              "0.05 less the gap, mean over five rates"),
        Claim("few", "Of 8 codes it leaves more than 0.1 nats unused.",
              "gap, mean over five rates, less 0.1"),
        Claim("better", "The coder's search and leak tell the rate of 32 codes to 0.05 nats.",
              "0.05 less the gap, mean over five rates"),
        Claim("concave", "Between a fifth and .95 of the entropy more rate tells less and "
              "less more.",
              "slope of information over rate at low rates less that at high ones, 8 codes",
              arms=("low rates", "high rates")),
        Claim("coupled", "Coupled with six wanted outcomes, a message keeps most of what it tells.",
              "share that the outcome has of the message's information, less 0.5"),
    )  # fmt: skip
    null = Claim("independent", "An outcome drawn apart from the message tells nothing of it.",
                 "information of 4,000 draws less its bias, nats")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Encode a net's states at five rates, by the greedy rule and by the search."""
        tick("hidden states")
        x, label = shuffled_digits(seed)
        net = learned(mlp(64), x[:1000], label[:1000], seed, 40 if tiny else 200).module
        with torch.no_grad():
            states = net[:4](x)  # pyright: ignore[reportIndexIssue]
        found: dict[str, list[float]] = {}
        for n in (SMALL, CODES):
            means = KMeans(n, n_init=2, random_state=seed).fit(states.numpy())  # pyright: ignore
            p = np.bincount(np.asarray(means.labels_), minlength=n) / len(x)
            whole = _entropy(p)
            for share in RATES:
                rate = share * whole
                told = EntropyBoundedCoder(rate, rule="greedy").code(p).information
                ours = EntropyBoundedCoder(rate).code(p)
                found.setdefault(f"greedy {n}", []).append(told)
                found.setdefault(f"ours {n}", []).append(ours.information)
                found.setdefault(f"rate {n}", []).append(rate)
        for name in ("low rates", "high rates"):
            note_for(name, rows=len(x))
        mean = {name: float(np.mean(v)) for name, v in found.items()}
        rates, ours = (np.array(found[f"{name} {SMALL}"]) for name in ("rate", "ours"))
        slopes = np.diff(ours) / np.diff(rates)
        code = EntropyBoundedCoder(float(rates[2])).code(torch.bincount(label[:1000]))
        message = (code.channel * (torch.bincount(label[:1000]) / 1000.0)[:, None]).sum(0)
        wanted = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(WANTED)))
        coupled = minimum_entropy_coupling(message, wanted)
        return {
            "greedy enough": 0.05 - (mean[f"rate {CODES}"] - mean[f"greedy {CODES}"]),
            "few": mean[f"rate {SMALL}"] - mean[f"greedy {SMALL}"] - 0.1,
            "better": 0.05 - (mean[f"rate {CODES}"] - mean[f"ours {CODES}"]),
            "concave": float(slopes[0] - slopes[-1]),
            "coupled": coupled.information / code.entropy - 0.5,
            "independent": _drawn_apart(message, wanted, seed),
            "gap of ours, 8 codes": mean[f"rate {SMALL}"] - mean[f"ours {SMALL}"],
            "gap of ours, 32 codes": mean[f"rate {CODES}"] - mean[f"ours {CODES}"],
        }


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _drawn_apart(p: Tensor, q: Tensor, seed: int, n: int = 4000) -> float:
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.multinomial(m.double(), n, replacement=True, generator=draw) for m in (p, q))
    joint = (
        torch.zeros(len(p), len(q)).index_put_((a, b), torch.ones(n), accumulate=True).numpy() / n
    )
    told = _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint.ravel())
    return told - (len(p) - 1) * (len(q) - 1) / (2 * n)  # the bias, by Miller and Madow
