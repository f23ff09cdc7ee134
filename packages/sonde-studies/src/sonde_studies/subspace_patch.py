"""Test whether a direction trained to flip answers acts through the next layer's input.

A toy: a net that says one of two objects, as an input of its own tells it; that input passes an MLP
by, so the MLP need not carry it. What came out (ten seeds): no illusion. The trained direction in
the MLP's hidden layer gives every answer, and its readable part does all of it: a twentieth of its
squared length is read by nobody.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.explain import Das, Objective, SubspacePatch, SubspaceVerdict
from sonde_studies.study import Claim, Figures, Study, Tick

OBJECTS, MANNERS, WIDTH, HIDDEN = 6, 8, 24, 128
STEPS, RATE = 400, 3e-3


class _Chooser(nn.Module):
    """Reads two objects, with a stream for the query: which object, and in what manner.

    An MLP adds to that stream, as what is asked for passes it by; then one reads both streams.
    """

    def __init__(self) -> None:
        super().__init__()
        self.objects = nn.Linear(2 * OBJECTS, WIDTH)
        self.embed = nn.Linear(MANNERS + 1, WIDTH)
        self.up, self.act = nn.Linear(WIDTH, HIDDEN), nn.ReLU()
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.choose = nn.Linear(2 * WIDTH, HIDDEN)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(HIDDEN, OBJECTS))

    def forward(self, x: Tensor) -> Tensor:
        stream = self.embed(x[:, 2 * OBJECTS :])
        stream = stream + self.down(self.act(self.up(stream)))
        both = torch.cat([self.objects(x[:, : 2 * OBJECTS]), stream], 1)
        return self.head(self.choose(both))


@final
class SubspacePatchStudy(Study):
    """A direction for ``which`` (the queried object), trained in an MLP and in the stream."""

    name = "subspace-patch"
    title = "does a trained direction work through its part that the next layer reads?"
    paper = "makelov2024illusion"
    fidelity = "a residual net in place of a language model; thresholds are ours"
    data = "pairs of objects at random; another draw for training than for tests"
    claims = (
        Claim(
            "gap in the MLP",
            "Along its readable part alone the direction in the hidden layer does much less.",
            "effect of the direction less that of its row part, share of the site's",
            above=0.25,
            premise="flips",
        ),
        Claim(
            "flips",
            "Premise: the trained direction gives the other answer more often than no patch.",
            "interchange accuracy on held-out pairs, less that without a patch",
            above=0.1,
        ),
    )
    null = Claim(
        "random direction",
        "A random direction of the hidden layer moves nothing.",
        "effect of the direction, share of the site's",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net and both directions, and patch their parts."""
        tick("train")
        net = _trained(seed, STEPS // 20 if tiny else STEPS)
        base, source, expected = _pairs(256, seed + 1000)
        das = Das(k=1, steps=10 if tiny else 300, rate=0.03, seed=seed)
        figures: dict[str, float] = {}
        reader = nn.Linear(WIDTH, HIDDEN)
        reader.weight = nn.Parameter(net.choose.weight[:, WIDTH:].detach())
        places = {"MLP": ("act", [net.down]), "stream": ("embed", [net.up, reader])}
        for name, (site, readers) in places.items():
            tick(f"search in the {name}")
            found = das.fit(net, base, source, expected, site)
            assert found.subspace is not None
            judged = _judged(net, base, found.subspace[:, 0], readers, site, seed)
            site_effect = judged.effects["site"]
            share = {key: value / site_effect for key, value in judged.effects.items()}
            figures[f"gap in the {name}"] = share["direction"] - share["row part"]
            figures |= {
                f"effect of the direction | {name}": share["direction"],
                f"effect of the row part | {name}": share["row part"],
                f"effect of a random direction | {name}": share["random"],
                f"unseen share of the length | {name}": judged.null_share,
                f"d' of the row part | {name}": judged.separation[0],
                f"called illusory | {name}": float(judged.verdict == "illusory"),
                f"interchange accuracy | {name}": float(found),
            }
            if name == "MLP":
                figures["random direction"] = share["random"]
                figures["flips"] = float(found) - found.unpatched
        return figures


def _rows(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, the two objects of each, and the queried object."""
    first = torch.randint(OBJECTS, (n,), generator=generator)
    second = (first + torch.randint(1, OBJECTS, (n,), generator=generator)) % OBJECTS
    which = torch.randint(2, (n,), generator=generator)
    hot = torch.eye(OBJECTS)
    manner = torch.eye(MANNERS)[torch.randint(MANNERS, (n,), generator=generator)]
    x = torch.cat([hot[first], hot[second], manner, 2.0 * which[:, None] - 1.0], 1)
    return x, torch.stack([first, second], 1), which


def _trained(seed: int, steps: int) -> _Chooser:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = _Chooser()
        optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
        for _ in range(steps):
            x, objects, which = _rows(128, generator)
            answer = objects.gather(1, which[:, None])[:, 0]
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), answer).backward()
            optimiser.step()
    return net.eval()


def _pairs(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return base and source inputs, and the base's object that the source queries."""
    generator = torch.Generator().manual_seed(seed)
    base, objects, _ = _rows(n, generator)
    source, _, which = _rows(n, generator)
    return base, source, objects.gather(1, which[:, None])[:, 0]


def _judged(
    net: _Chooser,
    base: Tensor,
    direction: Tensor,
    readers: list[nn.Linear],
    site: str,
    seed: int,
) -> SubspaceVerdict:
    """Return the verdict on pairs that differ only in the query."""
    source = torch.cat([base[:, :-1], -base[:, -1:]], 1)
    objects = base[:, : 2 * OBJECTS].unflatten(1, (2, OBJECTS)).argmax(2)
    asked = (source[:, -1] > 0).long()
    goal = Objective(
        "margin",
        target=objects.gather(1, asked[:, None])[:, 0],
        other=objects.gather(1, 1 - asked[:, None])[:, 0],
    )
    weights = [layer.weight.detach() for layer in readers]
    return SubspacePatch(seed=seed).explain(
        net, source, corrupt=base, direction=direction, readers=weights, objective=goal, site=site
    )
