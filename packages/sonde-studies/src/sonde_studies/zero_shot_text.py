"""Classification of unseen digits by a description: which of seven strokes they have.

A digit and faint pieces of others lie on one canvas; a small transformer scores its patches against
the descriptions.
"""

from typing import final

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import TargetHead
from sonde.train import Align
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, DIM, TOKENS, KNOWN = 1_200, 700, 4, 32, 16, 7
STROKES = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
"""Of a display of seven segments: a on top, then clockwise to f, and g in the middle."""
FAINT = 0.5
"""Ink of the pieces, of that of the digit."""
ARMS = ("mean", "tokens", "focus", "dual", "by lot")
Found = dict[str, float]


@final
class ZeroShotTextStudy(Study):
    """Scores of the mean, of tokens, with guided attention, and with a second head."""

    name = "zero-shot-text"
    title = "do descriptions tell classes that training never had?"
    paper = "mads2024"
    fidelity = "seven strokes of a display in place of embedded documents; a net of one layer"
    data = "scenes of a digit and faint pieces of others; seven digits known, three to be told"
    claims = (
        Claim("unseen", "Descriptions tell three unseen digits apart better than chance.",
              "accuracy with the focus loss, less 1/3"),
        Claim("focus", "Attention that is led to the digit in training helps on unseen ones.",
              "accuracy among unseen, with the focus loss less without"),
        Claim("tokens", "Scores of single tokens beside that of their mean help as well.",
              "accuracy among unseen, tokens and mean less mean"),
        Claim("dual", "A second head for known digits helps where all ten are candidates.",
              "harmonic mean of accuracies on known and unseen, with the second head less without"),
    )  # fmt: skip
    null = Claim("by lot", "Descriptions that are dealt out by lot tell nothing of unseen digits.",
                 "accuracy among unseen, less 1/3")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same known digits."""
        scenes, region, label = _scenes(seed)
        found = dict[str, Found]()
        for arm in ARMS:
            tick(arm)
            found[arm] = _judged(arm, scenes, region, label, seed, TINY if tiny else STEPS)
        unseen = {arm: row["unseen of three"] for arm, row in found.items()}
        return {
            "unseen": unseen["focus"] - 1 / 3,
            "focus": unseen["focus"] - unseen["tokens"],
            "tokens": unseen["tokens"] - unseen["mean"],
            "dual": found["dual"]["harmonic mean"] - found["focus"]["harmonic mean"],
            "by lot": unseen["by lot"] - 1 / 3,
            **{f"{arm} | {k}": v for arm, row in found.items() for k, v in row.items()},
        }


def _scenes(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches (scene, token, pixel), the mask of the digit, and the label.

    Digits are numbered anew by the seed: the first seven are known. Pieces are from known digits
    of the training part.
    """
    x, kind = shuffled_digits(seed)
    draw = torch.Generator().manual_seed(seed)
    label = _order(seed).argsort()[kind]
    squares, n = x.reshape(-1, 8, 8), len(x)
    parts = torch.nonzero(label[:FIT] < KNOWN).flatten()
    pieces = rearrange(squares[parts], "n (a y) (b x) -> (n a b) y x", a=2, b=2)
    drawn_pieces = torch.randint(len(pieces), (n, TOKENS), generator=draw)
    quarter = torch.randint(4, (n,), generator=draw)
    own = rearrange(squares, "n (a y) (b x) -> n (a b) y x", a=2, b=2)
    grid = torch.arange(TOKENS).reshape(4, 4)
    quarters = rearrange(grid, "(a y) (b x) -> (a b) (y x)", a=2, b=2)
    tokens = FAINT * pieces[drawn_pieces].flatten(2)
    at = quarters[quarter]
    tokens.scatter_(1, at[..., None].expand(-1, -1, 16), own.flatten(2))
    region = torch.zeros(n, TOKENS, dtype=torch.bool).scatter_(1, at, True)
    return tokens, region, label


def _order(seed: int) -> Tensor:
    """Return the digits in random order."""
    return torch.randperm(10, generator=torch.Generator().manual_seed(seed + 77))


def _descriptions(seed: int, by_lot: bool) -> Tensor:
    """Return a vector of 1 and -1 for each digit, in the order of labels."""
    codes = torch.tensor(
        [[1.0 if s in strokes else -1.0 for s in "abcdefg"] for strokes in STROKES]
    )
    codes = codes[_order(seed)]
    return (
        codes[torch.randperm(10, generator=torch.Generator().manual_seed(seed))]
        if by_lot
        else codes
    )


class _Net(nn.Module):
    """Patches, one attention layer, and a query that weights them in a mean."""

    def __init__(self, head: TargetHead) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(16, DIM), nn.Parameter(torch.randn(TOKENS, DIM) / 10)
        self.mixing = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, 0.0, batch_first=True)
        self.query, self.head = nn.Linear(DIM, 1, bias=False), head

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores of classes, and the attention of the query (scene, 1, 1, token)."""
        states = self.mixing(self.embed(tokens) + self.place)
        attention = self.query(states).softmax(1)
        weighed = TOKENS * attention * states
        scores = self.head(weighed if self.head.local else weighed.mean(1))
        return scores, attention[:, None].transpose(2, 3)


def _judged(
    arm: str, scenes: Tensor, region: Tensor, label: Tensor, seed: int, steps: int
) -> Found:
    codes = _descriptions(seed, by_lot=arm == "by lot")
    head = {"local": arm != "mean", "top_tokens": 2} if arm != "mean" else {}
    known = KNOWN if arm == "dual" else 0
    net = drawn(lambda: _Net(TargetHead.of(codes, DIM, temperature=0.1, known=known, **head)), seed)
    focus = Align("focus") if arm not in ("mean", "tokens") else None
    fit = torch.nonzero(label[:FIT] < KNOWN).flatten()

    def loss(some: Tensor) -> Tensor:
        rows = fit[some]
        scores, attention = net(scenes[rows])
        value = cross_entropy(scores[:, :KNOWN], label[rows])
        return value if focus is None else value + focus(attention, region[rows])

    minimise(loss, net.parameters(), len(fit), steps=steps, seed=seed, rate=2e-3)
    with torch.no_grad():
        scores, attention = net(scenes[FIT:])
    truth, led = label[FIT:], (attention[:, 0, 0] * region[FIT:]).sum(1).mean()
    new = truth >= KNOWN
    right = scores.argmax(1) == truth
    old_share, new_share = float(right[~new].double().mean()), float(right[new].double().mean())
    among = scores[new][:, KNOWN:].argmax(1) + KNOWN == truth[new]
    return {
        "unseen of three": float(among.double().mean()),
        "unseen of ten": new_share,
        "known of ten": old_share,
        "harmonic mean": 2 * old_share * new_share / max(old_share + new_share, 1e-9),
        "attention on the digit": float(led),
    }
