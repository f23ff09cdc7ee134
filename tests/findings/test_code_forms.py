"""New names of the codes of several columns at once."""

import pytest
import torch
from torch import Tensor, nn

import sonde
from scan._zoo import quiet


class Votes(nn.Module):
    """Two classes by the sum of an entry of a table for each code."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.tables = nn.ModuleList(nn.Embedding(n, 4) for n in (2, 3, 2, 5, 2))
        self.head = nn.Linear(4, 2)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=draw)

    def forward(self, codes: Tensor) -> Tensor:
        parts = [table(codes[:, i]) for i, table in enumerate(self.tables)]
        return 6 * self.head(torch.stack(parts).sum(0).tanh())


@pytest.mark.slow
@pytest.mark.truth(
    "the columns whose codes were exchanged, and the answers of the line on all rows"
)
@pytest.mark.parametrize("columns", [(4,), (0, 4)])
def test_the_columns_whose_codes_have_other_names_are_found(columns: tuple[int, ...]) -> None:
    net, draw = Votes().eval(), torch.Generator().manual_seed(5)
    codes = torch.stack([torch.randint(t.num_embeddings, (600,), generator=draw)
                         for t in net.tables], 1)  # fmt: skip
    torch.manual_seed(0)
    y = torch.distributions.Categorical(logits=net(codes)).sample()
    broken = codes.clone()
    for i in columns:
        broken[:, i] = 1 - broken[:, i]
    rows = [{"codes": broken[i], "label": int(y[i])} for i in range(len(y))]
    report = sonde.scan(net, rows, settings=quiet(only=("SND015", "SND046", "SND068")))
    finding = next(f for f in report.findings if f.code == "SND015")
    assert report.json()["cause"] == "SND015"
    assert sorted(finding["location"]["columns"]) == list(columns)
    space = {"torch": torch, "codes": broken.clone()}
    exec(finding["fix"].split(": correct")[0], space)
    assert torch.equal(space["codes"], codes)
