"""Axes and tokens that look like others: told by what is declared, or asked for."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.run.reading.read import read
from sonde.tap.model.features import by_sizes

DRAW = torch.Generator().manual_seed(0)


class Words(nn.Module):
    """As many features as tokens; copied with the axes exchanged before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.place = nn.Parameter(torch.randn(6, 6))
        self.turned = nn.Dropout(0)
        self.head = nn.Linear(6, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids) + self.place
        return self.head(self.turned(x.permute(0, 2, 1).contiguous()).mean(2))


class Patches(nn.Module):
    """Four patches taken for channels; the padding of the last layer gives two more places."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.mixed = nn.Conv2d(3, 8, 2, 2), nn.Conv1d(4, 6, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(self.cut(x).flatten(2).transpose(1, 2))


def words_of(module: nn.Module, data: Tensor | list[dict[str, Tensor]], site: str) -> str:
    stream = read(module.eval(), data, sites=site, check=False)
    return str(stream.kinds[0].reduction.axes)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_size_of_one_is_no_evidence() -> None:
    assert by_sizes((2, 1, 6, 6), (1, 2, 3), nn.Conv2d(1, 5, 1)) is None
    assert by_sizes((2, 3, 6, 6), (1, 2, 3), nn.Conv2d(3, 5, 1)) == 1


@pytest.mark.filterwarnings("ignore:input's size at dim=1")
@pytest.mark.truth("the number of features that the norm declares")
def test_a_norm_that_declares_its_features_is_believed() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.InstanceNorm2d(8), nn.Linear(4, 2))
    assert words_of(net, torch.randn(6, 8, 6, 4, generator=DRAW), "1") == "row dim h w"
    other = nn.Sequential(nn.Linear(4, 4), nn.InstanceNorm2d(5), nn.Linear(4, 2))
    assert words_of(other, torch.randn(6, 8, 6, 4, generator=DRAW), "1") == "row h w dim"


@pytest.mark.parametrize(
    ("module", "data", "site", "said"),
    [
        (
            Words(),
            {"input_ids": torch.arange(6)},
            "turned",
            r"each of \[1, 2\] could be the feature axis",
        ),
        (Patches(), torch.randn(6, 3, 4, 4), "mixed", "10 tokens, of which 6 are not patches"),
    ],
    ids=["as many tokens as features", "padding"],
)
def test_what_cannot_be_told_is_asked_for(
    module: nn.Module, data: Tensor | Mapping[str, Tensor], site: str, said: str
) -> None:
    rows = [data] * 6 if isinstance(data, Mapping) else data
    with pytest.raises(SiteError, match=said):
        words_of(module, rows, site)  # pyright: ignore[reportArgumentType]
