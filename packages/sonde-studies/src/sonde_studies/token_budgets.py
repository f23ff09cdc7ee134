"""Few tokens for the frames of a clip: by relevance to a question, evenly, or at random.

Every frame is a digit in sixteen patches, marked by a vector that a question asks for.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.compress import segment_relevance, shortened, token_budget
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, drawn, minimise, squares_of

FIT, CLIPS, FRAMES, TOKENS, MARK, STEPS, TINY = 1_000, 300, 8, 16, 24, 500, 20
KEPT = (1, 2, 4, 8, 16)
BUDGET = FRAMES * TOKENS // 8


@final
class TokenBudgetsStudy(Study):
    """The digit in the queried frame, read from an eighth of the tokens."""

    name = "token-budgets"
    title = "does sharing tokens by a question's relevance beat sharing them evenly?"
    paper = "luo2025quota"
    fidelity = "the apportionment is the paper's; cosines of states in place of a model's yes or no"
    data = "simulated clips of eight digits in sixteen patches; 16 of 128 tokens are kept"
    claims = (
        Claim("aware", "By relevance the asked digit is read better than from even parts.",
              "accuracy, by relevance less evenly"),
        Claim("whole", "It is read as well as from all tokens, to five points.",
              "accuracy, by relevance less all tokens, and 0.05"),
        Claim("floor", "A floor of one token for each frame costs less than five points.",
              "accuracy, by relevance with a floor less without, and 0.05"),
        Claim("parts", "Asked for two frames, the largest cosine serves both better than the mean.",
              "accuracy of the less well read frame, largest less mean"),
    )  # fmt: skip
    null = Claim("lot", "By a question of another clip no frame is read better than another.",
                 "accuracy, by a strange question, asked frame less another")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a reader of pooled patches, and test each way to distribute a clip's tokens."""
        x, label = digit_images(seed)
        tick("reader")
        reader = _reader(x[:FIT], label[:FIT], seed, TINY if tiny else STEPS)
        draw = torch.Generator().manual_seed(seed)
        right: dict[str, list[float]] = {}
        tick("clips")
        for _ in range(20 if tiny else CLIPS):
            rows = torch.randint(FIT, len(x), (FRAMES,), generator=draw)
            marks = torch.randn(FRAMES, MARK, generator=draw)
            patches = squares_of(x[rows], 2)
            noise = torch.randn(FRAMES, TOKENS, MARK, generator=draw)
            states = torch.cat([patches, marks[:, None] + noise], 2).flatten(0, 1)
            lengths = torch.full((FRAMES,), TOKENS)
            asked, other = torch.randperm(FRAMES, generator=draw)[:2].tolist()
            blank = torch.zeros(FRAMES, patches.shape[2])
            question = torch.cat([blank, marks], 1)
            near = segment_relevance(states, lengths, question[[asked]])
            stranger = torch.randn(1, states.shape[1], generator=draw)
            far = segment_relevance(states, lengths, stranger)
            pair = question[[asked, other]]
            ways = {
                "relevance": token_budget(near, lengths, BUDGET, 0.05),
                "floor": token_budget(near, lengths, BUDGET, 0.05, floor=1),
                "even": torch.full((FRAMES,), BUDGET // FRAMES),
                "all": lengths,
                "stranger": token_budget(far, lengths, BUDGET, 0.05),
            }
            for how in ("max", "mean"):
                found = segment_relevance(states, lengths, pair, how)
                ways[how] = token_budget(found, lengths, BUDGET, 0.05)
            for way, kept in ways.items():
                told = [_told(reader, states, lengths, kept, i) for i in (asked, other)]
                for name, said, i in ((way, told[0], asked), (f"{way}, other", told[1], other)):
                    right.setdefault(name, []).append(float(said == label[rows[i]]))
        mean = {way: sum(hits) / len(hits) for way, hits in right.items()}
        both = {how: min(mean[how], mean[f"{how}, other"]) for how in ("max", "mean")}
        return {
            "aware": mean["relevance"] - mean["even"],
            "whole": mean["relevance"] - mean["all"] + 0.05,
            "floor": mean["floor"] - mean["relevance"] + 0.05,
            "parts": both["max"] - both["mean"],
            "lot": mean["stranger"] - mean["stranger, other"],
            **{f"accuracy | {way}": v for way, v in mean.items()},
        }


def _spread(tokens: Tensor) -> Tensor:
    """Return sixteen tokens from fewer, each repeated over its positions."""
    return nn.functional.interpolate(tokens.T[None], TOKENS).flatten()


def _reader(x: Tensor, label: Tensor, seed: int, steps: int) -> nn.Module:
    """Return a net that classifies digits from patches pooled to any number of tokens."""
    patches = squares_of(x, 2)
    pooled = {n: nn.functional.adaptive_avg_pool1d(patches.transpose(1, 2), n) for n in KEPT}
    shown = torch.stack([nn.functional.interpolate(p, TOKENS).flatten(1) for p in pooled.values()])
    net = drawn(lambda: nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)), seed)

    def loss(rows: Tensor) -> Tensor:
        size = torch.randint(len(KEPT), rows.shape)
        return cross_entropy(net(shown[size, rows]), label[rows])

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed)
    return net.eval()


@torch.no_grad()
def _told(reader: nn.Module, states: Tensor, lengths: Tensor, kept: Tensor, frame: int) -> int:
    """Return the digit read from a frame's remaining tokens; -1 if it has none."""
    if not int(kept[frame]):
        return -1
    start = int(kept[:frame].sum())
    own = shortened(states, lengths, kept)[start : start + int(kept[frame]), : 64 // TOKENS]
    return int(reader(_spread(own)).argmax())
