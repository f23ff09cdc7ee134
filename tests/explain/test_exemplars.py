"""Rows of a unit against a full sort."""

import pytest
import torch

import sonde
from sonde.core import InputError
from sonde.explain import Exemplars


@pytest.mark.truth("sorting every row of each unit")
def test_rows_equal_a_full_sort():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    ids = [f"text {i // 3}" for i in range(300)]
    stream = sonde.Stream.of({"unit": x}, position=torch.arange(300), ids=ids)
    words = torch.cat([batch.column("ids", "unit") for batch in stream])
    found = Exemplars(n=5, m=2).fit(x, position=torch.arange(300), ids=ids)
    torch.testing.assert_close(torch.as_tensor(found.value).float(), x.amax(0))
    for unit in range(4):
        rows = found.of(unit)
        best = [one for one in rows if one.range == "top"]
        assert [one.position for one in best] == x[:, unit].argsort(descending=True)[:5].tolist()
        assert all(list(one.ids) == words[one.position].tolist() for one in rows)
        power = float(2.0 ** x[:, unit].amax().log2().floor().add(1))
        for low in (0.5, 0.25, 0.125):
            said = f"{low * power:g} to {2 * low * power:g}"
            part = [one for one in rows if one.range == said]
            is_inside = (x[:, unit] >= low * power) & (x[:, unit] < 2 * low * power)
            assert len(part) == min(2, int(is_inside.sum()))
            for one in part:
                assert low * power <= one.value < 2 * low * power
                assert one.value == float(x[one.position, unit])
        assert sum(one.range == "rest" for one in rows) == 2
    assert 4 * (5 + 2) < found.table().num_rows <= 4 * (5 + 5 * 2)
    with pytest.raises(InputError, match="a unit below 4, got 4"):
        found.of(4)
