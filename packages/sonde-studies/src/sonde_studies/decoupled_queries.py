"""Things and stuff told by descriptions: queries and prompts of each kind, or of both together.

A digit lies on stripes, among faint pieces of other digits. Queries of a decoder look for the digit
(the thing) and for the stripes (the stuff), and are scored against descriptions that a frozen
encoder reads behind learned vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from sonde.layers import Attention, Blocks, LearnedPrompt, TargetHead
from sonde_studies._described_digits import described_digits
from sonde_studies.arms import part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, PRETRAINED, TINY, DIM = 1_200, 600, 300, 4, 32
QUERIES, VECTORS, STROKES, BITS = 2, 2, 7, 3
KNOWN = {"thing": 7, "stuff": 6}
"""How many classes of each kind have training examples: the first of ten and of eight classes."""


@dataclass(frozen=True)
class Arm:
    """Whether queries of one kind see their own kind alone, prompts by kind, and lot of an arm."""

    decoupled: bool = True
    kinds: int = 2
    lot: int | None = None


ARMS = {
    "decoupled": Arm(),
    "joint": Arm(decoupled=False),
    "one prompt": Arm(kinds=1),
    "no prompt": Arm(kinds=0),
    "by lot": Arm(lot=1),
}


@final
class DecoupledQueriesStudy(Study):
    """A digit and stripes in each scene; three digits and two stripes were never seen."""

    name = "decoupled-queries"
    title = "do queries and prompts of their own help to tell things and stuff by descriptions?"
    paper = "li2023opensd"
    fidelity = (
        "classes of a scene in place of masks and boxes; a small encoder of attributes, pretrained "
        "on random descriptions and frozen, in place of CLIP; two queries of each kind"
    )
    data = "digits on stripes: 1,200 scenes to train on, 597 to judge"
    seconds = 40.0
    claims = (
        Claim("unseen of both kinds",
              "Unseen digits and unseen stripes are told better than by chance.",
              "mean accuracy among the unseen of a kind, less chance"),
        Claim("decoupled", "Queries that attend to their own kind alone tell more than queries "
              "that attend to all, where all classes of a kind are candidates.",
              "mean accuracy of known and unseen of both kinds, decoupled less joint",
              arms=("decoupled", "joint")),
        Claim("by kind", "A prompt for each kind tells more unseen classes than one for both, with "
              "as many vectors.", "mean accuracy among the unseen, decoupled less one prompt",
              arms=("decoupled", "one prompt")),
        Claim("prompt", "Learned prompts, with more parameters, tell more unseen than none.",
              "mean accuracy among the unseen, decoupled less no prompt",
              arms=("decoupled", "no prompt")),
    )  # fmt: skip
    null = Claim("by lot", "Descriptions that are dealt out by lot tell nothing of the unseen.",
                 "mean accuracy among the unseen, less chance")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Pretrain an encoder of descriptions, and train each arm on the same scenes."""
        world = Scenes.drawn(seed)
        tick("encoder")
        with part("encoder"):
            encoder = pretrained_encoder(seed, TINY if tiny else PRETRAINED)
        found: dict[str, dict[str, float]] = {}
        for name, arm in ARMS.items():
            tick(name)
            net = drawn(lambda arm=arm: Net(encoder, arm, seed), seed)
            learn(net, world, seed, TINY if tiny else STEPS)
            found[name] = judged(net, world)
        unseen = {name: row["unseen, above chance"] for name, row in found.items()}
        whole = {name: row["of all"] for name, row in found.items()}
        return {
            "unseen of both kinds": unseen["decoupled"],
            "decoupled": whole["decoupled"] - whole["joint"],
            "by kind": unseen["decoupled"] - unseen["one prompt"],
            "prompt": unseen["decoupled"] - unseen["no prompt"],
            "by lot": unseen["by lot"],
            **{f"{name} | {k}": v for name, row in found.items() for k, v in row.items()},
        }


@dataclass(frozen=True)
class Scenes:
    """Patches of scenes, the class of each kind, and the attributes of the classes.

    Parameters
    ----------
    patches : Tensor
        (scene, token, pixel).
    label : dict of str to Tensor
        For things and stuff, the class of each scene.
    codes : dict of str to Tensor
        For things and stuff, (class, attribute), 1 or -1.
    """

    patches: Tensor
    label: dict[str, Tensor]
    codes: dict[str, Tensor]

    @classmethod
    def drawn(cls, seed: int) -> "Scenes":
        """Return a scene for each of the 1,797 digits, with random stripes behind it."""
        world, draw = (
            described_digits(seed, FIT, KNOWN["thing"]),
            torch.Generator().manual_seed(seed),
        )
        n, order = len(world.label), torch.randperm(8, generator=draw)
        bits = torch.stack([order // 2**i % 2 for i in range(BITS)], 1)
        stuff = torch.randint(8, (n,), generator=draw)
        stripes = _stripes(bits[stuff], torch.randint(4, (n,), generator=draw))
        return cls(
            world.patches + stripes[:, None],
            {"thing": world.label, "stuff": stuff},
            {"thing": world.codes, "stuff": 2.0 * bits - 1},
        )

    def fitted(self, known_classes: Mapping[str, int]) -> Tensor:
        """Return the training scenes whose classes are both known."""
        known = [self.label[kind][:FIT] < n for kind, n in known_classes.items()]
        return torch.nonzero(known[0] & known[1]).flatten()


def _stripes(bits: Tensor, phase: Tensor) -> Tensor:
    """Return stripes of a patch, (scene, pixel): upright or not, wide or not, strong or not."""
    upright, wide, strong = bits.T
    at = torch.arange(4) + phase[:, None]
    line = torch.where(wide[:, None] > 0, at // 2 % 2, at % 2).float()
    line = line * torch.where(strong > 0, 0.5, 0.25)[:, None]
    across = line[:, None].expand(-1, 4, -1)
    return torch.where(upright[:, None, None] > 0, across, across.transpose(1, 2)).flatten(1)


class Encoder(nn.Module):
    """A text encoder: reads a word for each attribute of a description, and returns a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(2 * (STROKES + BITS), DIM)
        self.mixing = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, 0.0, batch_first=True)

    def embedded(self, codes: Tensor, kind: int) -> Tensor:
        """Return the words (text, word, DIM) of attributes (text, attribute)."""
        places = torch.arange(codes.shape[1]) + (STROKES if kind else 0)
        return self.words(2 * places + (codes > 0).long())

    def forward(self, words: Tensor) -> Tensor:
        """Return the mean state of each text."""
        return self.mixing(words).mean(1)


def pretrained_encoder(seed: int, steps: int) -> Encoder:
    """Return a frozen encoder whose vectors say which attributes random descriptions have."""
    net = drawn(Encoder, seed)
    heads = drawn(lambda: nn.ModuleList([nn.Linear(DIM, STROKES), nn.Linear(DIM, BITS)]), seed + 1)

    def loss(rows: Tensor) -> Tensor:
        each = list[Tensor]()
        for kind, head in enumerate(heads):
            had = torch.randint(2, (len(rows), (STROKES, BITS)[kind])).float()
            said = head(net(net.embedded(2 * had - 1, kind)))
            each.append(binary_cross_entropy_with_logits(said, had))
        return each[0] + each[1]

    both = [*net.parameters(), *heads.parameters()]
    minimise(loss, both, 64, steps=steps, seed=seed, rate=1e-3)
    return net.eval().requires_grad_(False)


class Net(nn.Module):
    """Queries of both kinds read the patches and are scored against descriptions."""

    def __init__(self, encoder: Encoder, arm: Arm, seed: int) -> None:
        super().__init__()
        self.encoder, self.arm, self.seed = encoder, arm, seed
        self.embed, self.place = nn.Linear(16, DIM), nn.Parameter(torch.randn(16, DIM) / 10)
        self.mixing = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, 0.0, batch_first=True)
        self.queries = nn.Parameter(torch.randn(2 * QUERIES, DIM) / 10)
        pattern = Blocks(QUERIES) if arm.decoupled else "all"
        self.among = nn.ModuleList(Attention(DIM, pattern=pattern, heads=4) for _ in range(2))
        self.reading = nn.ModuleList(
            nn.MultiheadAttention(DIM, 4, batch_first=True) for _ in range(2)
        )
        self.map = nn.ModuleList(nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM))
                                 for _ in range(2))  # fmt: skip
        self.prompt = LearnedPrompt(DIM, VECTORS * 2 // arm.kinds, arm.kinds) if arm.kinds else None
        self.heads = nn.ModuleList(TargetHead(DIM, temperature=0.1) for _ in range(2))

    def texts(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Return the vectors of the descriptions of each kind, behind the learned prompts."""
        found = list[Tensor]()
        for kind, own in enumerate(codes):
            words = self.encoder.embedded(self._dealt(own), kind)
            if self.prompt is not None:
                own_kind = torch.full((len(words),), kind if self.arm.kinds > 1 else 0)
                words = self.prompt(words, own_kind)
            found.append(self.encoder(words))
        return found

    def _dealt(self, codes: Tensor) -> Tensor:
        if self.arm.lot is None:
            return codes
        draw = torch.Generator().manual_seed(self.seed + 1_000 * self.arm.lot)
        return codes[torch.randperm(len(codes), generator=draw)]

    def forward(self, patches: Tensor, codes: Sequence[Tensor]) -> list[Tensor]:
        """Return the scores (scene, class) of things and of stuff."""
        states = self.mixing(self.embed(patches) + self.place)
        q = self.queries.expand(len(states), -1, -1)
        for among, reading, mapped in zip(self.among, self.reading, self.map, strict=True):
            q = q + reading(among(q), states, states, need_weights=False)[0]
            q = q + mapped(q)
        pairs = zip(q.split(QUERIES, 1), self.texts(codes), self.heads, strict=True)
        return [head(own.mean(1), text) for own, text, head in pairs]


def learn(net: Net, world: Scenes, seed: int, steps: int, known: Mapping[str, int] = KNOWN) -> None:
    """Train a net on the scenes of known classes.

    Parameters
    ----------
    net : Net
    world : Scenes
    seed, steps : int
    known : mapping of str to int, default=KNOWN
        For each kind, the number of first classes with examples in training.
    """
    fit = world.fitted(known)
    codes = [
        world.codes[kind][:n] if net.arm.lot is None else world.codes[kind]
        for kind, n in known.items()
    ]

    def loss(some: Tensor) -> Tensor:
        rows = fit[some]
        scores = net(world.patches[rows], codes)
        pairs = zip(scores, known.items(), strict=True)
        told = [cross_entropy(s[:, :n], world.label[kind][rows]) for s, (kind, n) in pairs]
        return told[0] + told[1]

    moved = [p for p in net.parameters() if p.requires_grad]
    minimise(loss, moved, len(fit), steps=steps, seed=seed, rate=2e-3)


@torch.no_grad()
def judged(net: Net, world: Scenes) -> dict[str, float]:
    """Return accuracies on fresh scenes: among the unseen of a kind, and among all its classes."""
    scores = net(world.patches[FIT:], [*world.codes.values()])
    row: dict[str, float] = {}
    above, whole = list[float](), list[float]()
    for score, (kind, n) in zip(scores, KNOWN.items(), strict=True):
        truth = world.label[kind][FIT:]
        new = truth >= n
        among = score[new][:, n:].argmax(1) + n == truth[new]
        right = score.argmax(1) == truth
        row[f"{kind} | unseen among unseen"] = float(among.double().mean())
        above.append(row[f"{kind} | unseen among unseen"] - 1 / (score.shape[1] - n))
        for name, rows in (("known", ~new), ("unseen", new)):
            row[f"{kind} | {name} of all"] = float(right[rows].double().mean())
            whole.append(row[f"{kind} | {name} of all"])
    return {"unseen, above chance": fmean(above), "of all": fmean(whole), **row}
