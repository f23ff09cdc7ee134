"""Classification of unseen digits by a description: which of seven strokes they have.

A digit and faint pieces of others lie on one canvas; a small transformer scores its patches against
the descriptions.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import TargetHead
from sonde.train import Align
from sonde_studies._described_digits import DescribedDigits, described_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, DIM, TOKENS, KNOWN, UNSEEN = 1_200, 700, 4, 32, 16, 7, 3
Found = dict[str, float]


@dataclass(frozen=True)
class _Arm:
    """Score of tokens, target of attention, second head, attributes, and lot of an arm."""

    tokens: bool = True
    led_to: str = "digit"
    second_head: bool = False
    attributes: bool = False
    lot: int = 0


ARMS = {
    "mean": _Arm(tokens=False, led_to=""),
    "tokens": _Arm(led_to=""),
    "focus": _Arm(),
    "dual": _Arm(second_head=True),
    "attributes": _Arm(attributes=True),
    "own targets": _Arm(attributes=True, led_to="strokes"),
    "by lot": _Arm(lot=1),
    "attributes by lot": _Arm(attributes=True, led_to="strokes", lot=2),
}


@final
class ZeroShotTextStudy(Study):
    """Scores of the mean, of tokens, with guided attention, a second head, and attributes."""

    name = "zero-shot-text"
    title = "do descriptions tell classes that training never had?"
    paper = "mads2024"
    fidelity = "strokes of a display as attributes, in place of embedded texts; a net of one layer"
    data = "scenes of a digit and faint pieces of others; seven digits known, three to be told"
    claims = (
        Claim("unseen", "Descriptions tell three unseen digits apart better than chance.",
              "accuracy with the focus loss, less 1/3"),
        Claim("focus", "Attention that is led to the digit in training helps on unseen ones.",
              "accuracy among unseen, with the focus loss less without",
              arms=("focus", "tokens")),
        Claim("tokens", "Scores of single tokens beside that of their mean help as well.",
              "accuracy among unseen, tokens and mean less mean",
              arms=("tokens", "mean")),
        Claim("dual", "A second head for known digits helps where all ten are candidates.",
              "harmonic mean of accuracies on known and unseen, with the second head less without",
              arms=("dual", "focus")),
        Claim("attributes", "Documents of seven attributes, a query for each, beat descriptions.",
              "accuracy among unseen with the focus loss, attributes less one description",
              arms=("attributes", "focus")),
        Claim("targets", "A target of attention for each attribute beats the digit for all.",
              "accuracy among unseen, led to the places of strokes less led to the digit",
              arms=("own targets", "attributes")),
    )  # fmt: skip
    null = Claim("by lot", "Descriptions that are dealt out by lot tell nothing of unseen digits.",
                 "accuracy among unseen, mean of one text and of attributes, less 1/3")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same known digits."""
        world = described_digits(seed, FIT, KNOWN)
        found = dict[str, Found]()
        for name, arm in ARMS.items():
            tick(name)
            found[name] = _judged(arm, world, seed, TINY if tiny else STEPS)
        unseen = {name: row["unseen of three"] for name, row in found.items()}
        return {
            "unseen": unseen["focus"] - 1 / UNSEEN,
            "focus": unseen["focus"] - unseen["tokens"],
            "tokens": unseen["tokens"] - unseen["mean"],
            "dual": found["dual"]["harmonic mean"] - found["focus"]["harmonic mean"],
            "attributes": unseen["attributes"] - unseen["focus"],
            "targets": unseen["own targets"] - unseen["attributes"],
            "by lot": (unseen["by lot"] + unseen["attributes by lot"]) / 2 - 1 / UNSEEN,
            **{f"{name} | {k}": v for name, row in found.items() for k, v in row.items()},
        }


class _Net(nn.Module):
    """Average patches for each text, after one attention layer, by weights that its query gives."""

    def __init__(self, head: TargetHead, texts: Tensor) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(16, DIM), nn.Parameter(torch.randn(TOKENS, DIM) / 10)
        self.mixing = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, 0.0, batch_first=True)
        self.query, self.head = nn.Linear(DIM, len(texts), bias=False), head
        self.texts = nn.Buffer(texts)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (text, scene, class), and attention of queries (scene, 1, text, token)."""
        states = self.mixing(self.embed(patches) + self.place)
        attention = self.query(states).softmax(1).transpose(1, 2)
        weighed = (TOKENS * attention[..., None] * states[:, None]).unbind(1)
        own = weighed if self.head.local else [part.mean(1) for part in weighed]
        scores = [self.head(x, text) for x, text in zip(own, self.texts, strict=True)]
        return torch.stack(scores), attention[:, None]


def _judged(arm: _Arm, world: DescribedDigits, seed: int, steps: int) -> Found:
    texts = world.texts(arm.attributes, seed + 1_000 * arm.lot if arm.lot else None)
    net = drawn(lambda: _net(arm, texts), seed)
    focus, fit = Align("focus"), torch.nonzero(world.label[:FIT] < KNOWN).flatten()
    region = world.strokes if arm.led_to == "strokes" else world.digit

    def loss(some: Tensor) -> Tensor:
        rows = fit[some]
        scores, attention = net(world.patches[rows])
        parts = [scores.mean(0), *(scores if arm.attributes else ())]
        told = [cross_entropy(part[:, :KNOWN], world.label[rows]) for part in parts]
        value = told[0] + (torch.stack(told[1:]).mean() if arm.attributes else 0)
        return value + focus(attention, region[rows]) if arm.led_to else value

    minimise(loss, net.parameters(), len(fit), steps=steps, seed=seed, rate=2e-3)
    with torch.no_grad():
        scores, attention = net(world.patches[FIT:])
    return _accuracies(scores.mean(0), attention[:, 0], world)


def _net(arm: _Arm, texts: Tensor) -> _Net:
    local, known = {"local": True, "top_tokens": 2} if arm.tokens else {}, KNOWN * arm.second_head
    return _Net(TargetHead(DIM, *texts.shape[1:], 0.1, known=known, **local), texts)


def _accuracies(scores: Tensor, attention: Tensor, world: DescribedDigits) -> Found:
    """Return accuracies on fresh scenes, and the attention on their digits."""
    truth, on = world.label[FIT:], (attention * world.digit[FIT:, None]).sum(2).mean()
    new, right = truth >= KNOWN, scores.argmax(1) == truth
    among = scores[new][:, KNOWN:].argmax(1) + KNOWN == truth[new]
    known, unseen = (float(right[rows].double().mean()) for rows in (~new, new))
    return {
        "unseen of three": float(among.double().mean()),
        "unseen of ten": unseen,
        "known of ten": known,
        "harmonic mean": 2 * known * unseen / max(known + unseen, 1e-9),
        "attention on the digit": float(on),
    }
