"""Files of stacks: cut at any byte they hold the first blocks, which are counted by hand."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from sonde.compress import BitStack, open_stack, save_stack
from sonde.core.errors import InputError, StoreError
from sonde.weights import StackLinear


def net():
    torch.manual_seed(0)
    layers = [nn.Linear(40, 24), nn.ReLU(), nn.BatchNorm1d(24), nn.Linear(24, 9, bias=False)]
    return nn.Sequential(*layers).eval()


def stacked():
    x = torch.randn(100, 40, generator=torch.Generator().manual_seed(1)) * torch.linspace(
        0.1, 3, 40
    )
    return BitStack(bits=12, blocks=4, rank=1).plan(net(), {"calibration": x}).fold(net()), x


@pytest.mark.essential
@pytest.mark.truth("the stacked model itself, with as many blocks of each layer as fit by hand")
def test_a_file_cut_at_any_byte_is_the_model_with_the_first_blocks(tmp_path):
    model, x = stacked()
    path = tmp_path / "model.stack"
    save_stack(model, path)
    whole = open_stack(net(), path)
    assert whole.read == whole.whole == path.stat().st_size
    assert whole.levels == {"0": model[0].levels, "3": model[3].levels}
    torch.testing.assert_close(whole.module(x), model(x), rtol=0, atol=0)
    size = {"0": 24 * 5 + 2 * (24 + 40), "3": 9 * 3 + 2 * (9 + 24)}
    total = {name: n * size[name] for name, n in whole.levels.items()}
    start = path.stat().st_size - sum(total.values())
    content, seen = path.read_bytes(), set()
    for at in (*range(start + sum(size.values()), len(content), 41), len(content)):
        (tmp_path / "cut").write_bytes(content[:at])
        found = open_stack(net(), tmp_path / "cut")
        used = sum(n * size[name] for name, n in found.levels.items())
        assert found.read == start + used <= at
        left = [size[name] for name, n in found.levels.items() if n < whole.levels[name]]
        assert not left or at - found.read < max(left)
        levels = [*found.levels.values()]
        assert abs(levels[0] - levels[1]) <= 1 or min(levels) == min(whole.levels.values())
        expected = deepcopy(model)
        for name, n in found.levels.items():
            expected[int(name)].use(n)
        torch.testing.assert_close(found.module(x), expected(x), rtol=0, atol=0)
        assert all(len(found.module[int(k)].signs) == n for k, n in found.levels.items())
        assert open_stack(net(), path, at).levels == found.levels
        seen.add(tuple(levels))
    assert len(seen) == sum(whole.levels.values()) - 1


@pytest.mark.truth("planted: a layer whose first block holds nearly all of its weight")
def test_blocks_of_a_level_stand_by_what_they_add(tmp_path):
    sign = torch.where(torch.randn(30, 30, generator=torch.Generator().manual_seed(0)) > 0, 1.0, -1)
    layers = {"0": torch.randn(30, 30), "1": sign}
    pair = nn.Sequential(nn.Linear(30, 30, bias=False), nn.Linear(30, 30, bias=False))
    for name, weight in layers.items():
        pair[int(name)].weight.data = weight
    rule = BitStack(bits=99, blocks=2, rank=1)
    model = rule.plan(pair, {"calibration": torch.randn(200, 30)}).fold(pair)
    save_stack(model, tmp_path / "two")
    size = 30 * 4 + 2 * 60
    found = open_stack(deepcopy(pair), tmp_path / "two", (tmp_path / "two").stat().st_size - size)
    assert found.levels == {"0": 2, "1": 1}  # of the signs alone a second block has least to add


def test_what_is_refused(tmp_path):
    model, _ = stacked()
    path = tmp_path / "model.stack"
    save_stack(model, path)
    content = path.read_bytes()
    with pytest.raises(InputError, match="a model with StackLinear layers, got none"):
        save_stack(net(), tmp_path / "plain")
    with pytest.raises(InputError, match="one block for each layer, got 2000"):
        open_stack(net(), path, 2000)
    with pytest.raises(InputError, match="expected at least"):
        open_stack(net(), path, 60)
    with pytest.raises(InputError, match=r"a linear layer '0' as in the file"):
        open_stack(nn.Sequential(nn.ReLU()), path)
    with pytest.raises(InputError, match="of the size in the file, got 8 inputs and 24 outputs"):
        open_stack(nn.Sequential(nn.Linear(8, 24), *[*net()][1:]), path)
    with pytest.raises(InputError, match=r"got others: \['5\.weight'\]"):
        open_stack(nn.Sequential(*net(), nn.ReLU(), nn.Linear(2, 2, bias=False)), path)
    path.write_bytes(content[:-3] + b"abc")
    with pytest.raises(StoreError, match="it is damaged"):
        open_stack(net(), path)
    open_stack(net(), path, len(content) - 1)  # the damaged block is not read
    path.write_bytes(b"x" * 400)
    with pytest.raises(StoreError, match="expected a file of save_stack"):
        open_stack(net(), path)
    assert isinstance(model[0], StackLinear)
