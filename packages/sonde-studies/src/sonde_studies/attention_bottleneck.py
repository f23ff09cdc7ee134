"""A bottleneck of attention: only a few of many gathered vectors are passed on.

Six simulated factors in six slots; the answer needs two of them. Learned queries gather from all
slots before the choice, so that one vector can hold what several slots say.
"""

from statistics import fmean
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import Readout
from sonde_studies._layers import probed
from sonde_studies.parts.heads import strongest_accuracy
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

SLOTS, VALUES, FIT, HELD, STEPS, TINY, DIM = 6, 3, 4_000, 1_000, 500, 4, 24
NEEDED, PROBED = (1, 4), 1_000


@final
class AttentionBottleneckStudy(Study):
    """Readouts that keep one, two or all of six vectors, each gathered from all slots."""

    name = "attention-bottleneck"
    title = "do a few chosen vectors say as much as all?"
    paper = "bengio2017consciousness"
    fidelity = "a prior that has no experiments; the task and the figures are ours"
    data = "simulated: six factors of three values in six noisy slots"
    claims = (
        Claim("two", "Two of six gathered vectors answer as well as all, to five points.",
              "accuracy, two less all, and 0.05",
              arms=("two", "all")),
        Claim("one", "One of them answers worse than two.", "accuracy, two less one",
              arms=("two", "one")),
        Claim("factors", "Two tell less of the factors that are not needed than all six do.",
              "accuracy of the strongest of three probes on other factors, all less two",
              arms=("two", "all")),
    )  # fmt: skip
    null = Claim("noise", "Answers that no factor tells stay at chance.",
                 "accuracy less 1/3, two chosen")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each width of the bottleneck."""
        draw = torch.Generator().manual_seed(seed)
        factor = torch.randint(VALUES, (FIT + HELD, SLOTS), generator=draw)
        codes = torch.randn(SLOTS, VALUES, DIM, generator=draw)
        x = codes[torch.arange(SLOTS), factor]
        x = x + 0.5 * torch.randn(x.shape, generator=draw)
        answer = factor[:, NEEDED[0]] * factor[:, NEEDED[1]] % VALUES
        other = torch.randint(VALUES, answer.shape, generator=draw)
        found, nets = dict[str, float](), dict[str, Any]()
        for arm, k, truth in (("all", None, answer), ("two", 2, answer), ("one", 1, answer),
                              ("noise", 2, other)):  # fmt: skip
            tick(arm)
            net = drawn(lambda k=k: _Net(k), seed)
            minimise(
                lambda r, net=net, truth=truth: cross_entropy(net(x[r]), truth[r]),
                net.parameters(), FIT, steps=TINY if tiny else STEPS, seed=seed,
            )  # fmt: skip
            with torch.no_grad():
                told = net(x[FIT:]).argmax(1)
            found[arm] = float((told == truth[FIT:]).double().mean())
            nets[arm] = net
        needed, rest = dict[str, float](), dict[str, float]()
        for arm in ("all", "two"):
            with torch.no_grad():
                passed = nets[arm].gathered(x)
            needed[arm] = fmean(probed(passed, factor[:, i], FIT) for i in NEEDED)
            others = [factor[:, i] for i in range(SLOTS) if i not in NEEDED]
            few = slice(FIT - PROBED, None)
            rest[arm] = fmean(strongest_accuracy(passed[few], one[few], PROBED) for one in others)
        return {
            "two": found["two"] - found["all"] + 0.05,
            "one": found["two"] - found["one"],
            "factors": rest["all"] - rest["two"],
            "noise": found["noise"] - 1 / VALUES,
            **{f"accuracy | {arm}": v for arm, v in found.items()},
            **{f"probe, {arm} | needed": v for arm, v in needed.items()},
            **{f"probe, {arm} | others": v for arm, v in rest.items()},
        }


class _Net(nn.Module):
    """Queries that gather the slots, a selection, and an answer from the selected slots."""

    def __init__(self, k: int | None) -> None:
        super().__init__()
        self.place = nn.Parameter(0.5 * torch.randn(SLOTS, DIM))
        self.readout = Readout((DIM,), DIM, "queries", n_queries=SLOTS, select=k)
        self.head = nn.Sequential(nn.Linear(DIM, 48), nn.ReLU(), nn.Linear(48, VALUES))

    def gathered(self, x: Tensor) -> Tensor:
        return self.readout(x + self.place).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gathered(x))
