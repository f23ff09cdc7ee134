"""A federation by hand: averaging, control variates, and the bytes of what is sent."""

import numpy as np
import pytest
import torch
from torch import nn

from sonde import InputError, Model
from sonde.compress import TopKCodec
from sonde.data import open_inputs
from sonde_studies.parts.federation import Federation
from sonde_studies.recipes.federated_bits import CONTROL, PLAIN, federated_bits


def rows(n=150):
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n, 4, generator=draw)
    label = (x[:, 0] + 0.3 * torch.randn(n, generator=draw) > 0).long()
    client = torch.where(label == 1, 1, torch.randint(0, 3, (n,), generator=draw))
    items = [{"x": v, "label": int(c), "client": int(k)}
             for v, c, k in zip(x, label, client, strict=True)]  # fmt: skip
    return x, label, client.numpy(), items


@pytest.mark.truth("whole-batch federation written out for a linear net")
@pytest.mark.parametrize("arm", [PLAIN, CONTROL])
@pytest.mark.parametrize("n", [3, 2])
def test_each_arm_is_the_federation_written_out(arm, n):
    torch.manual_seed(1)
    net = nn.Linear(4, 2)
    x, label, client, items = rows()
    found = federated_bits(Model(net.eval()), items, rounds=3, local_steps=2, rate=0.5,
                           batch_size=150, seed=4, take_part=n / 3, progress=False)  # fmt: skip
    draw = np.random.default_rng(4).permutation(150)
    held, ours = draw[:45], draw[45:]
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    variate = [[torch.zeros_like(weight), torch.zeros_like(bias)] for _ in range(3)]
    lot = np.random.default_rng([4, 1])
    for _ in range(3):
        new, told = [], []
        mean = [torch.stack([v[j] for v in variate]).mean(0) for j in (0, 1)]
        for k in sorted(lot.permutation(3)[:n].tolist()):
            own = ours[client[ours] == k]
            w, b, total = weight.clone(), bias.clone(), [torch.zeros(2, 4), torch.zeros(2)]
            for _ in range(2):
                chance = (x[own] @ w.T + b).softmax(1)
                error = (chance - nn.functional.one_hot(label[own], 2)) / len(own)
                slopes = [error.T @ x[own], error.sum(0)]
                total = [t + s / 2 for t, s in zip(total, slopes, strict=True)]
                drift = [v - m if arm == CONTROL else 0 * v
                         for v, m in zip(variate[k], mean, strict=True)]  # fmt: skip
                w, b = w - 0.5 * (slopes[0] - drift[0]), b - 0.5 * (slopes[1] - drift[1])
            told.append(k)
            new.append(total)
        if arm == CONTROL:
            step = [mean[j] + sum(v[j] - variate[k][j] for k, v in zip(told, new, strict=True)) / n
                    for j in (0, 1)]  # fmt: skip
            for k, v in zip(told, new, strict=True):
                variate[k] = v
        else:
            step = [torch.stack([v[j] for v in new]).mean(0) for j in (0, 1)]
        weight, bias = weight - 2 * 0.5 * step[0], bias - 2 * 0.5 * step[1]
    right = ((x[held] @ weight.T + bias).argmax(1) == label[held]).double().mean()
    score = {row["arm"]: row for row in found.rows}
    assert score[arm]["accuracy"] == pytest.approx(float(right), abs=1e-6)
    assert score[arm]["megabytes up"] == pytest.approx(3 * n * 10 * 4 / 1e6)
    assert score[f"{CONTROL}, signs"]["of plain"] < score[f"{CONTROL}, 7 bits"]["of plain"]


def federation(seed=4):
    torch.manual_seed(1)
    *_, client, items = rows()
    model = Model(nn.Linear(4, 2).eval())
    inputs = open_inputs(model, items, ignore_columns="client")
    return Federation(model, inputs, client.tolist(), np.arange(150), 0.5, 2, seed)


@pytest.mark.truth("both forms of control variates are one algorithm where nothing is rounded")
@pytest.mark.parametrize("share", [1.0, 0.67])
def test_two_streams_in_full_train_as_one_with_half_of_the_bytes_does(share):
    one, two = (federation().trained(9, take_part=share, two_streams=s)[0] for s in (False, True))
    for here, there in zip(one, two, strict=True):
        assert here["accuracy"] == there["accuracy"]
        assert 2 * here["megabytes"] == pytest.approx(there["megabytes"])


@pytest.mark.truth("a running mean of one gradient is that gradient")
def test_inertia_changes_nothing_in_the_first_round_and_something_later():
    codec = lambda _: TopKCodec(0.2)  # noqa: E731
    plain, slow = (federation().trained(30, codec=codec, inertia=i)[0] for i in (0.0, 0.9))
    assert plain[0] == slow[0]
    assert [p["accuracy"] for p in plain] != [s["accuracy"] for s in slow]
    assert [p["megabytes"] for p in plain] == [s["megabytes"] for s in slow]


@pytest.mark.parametrize("wrong", [{"take_part": 0.0}, {"take_part": 1.5}, {"inertia": 1.0}])
def test_a_share_or_an_inertia_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match="expected a share of clients"):
        federation().trained(1, **wrong)


def test_the_model_stays_as_it_is_and_rows_without_a_client_are_refused():
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    before = net.weight.detach().clone()
    *_, items = rows()
    federated_bits(Model(net.eval()), items, rounds=1, progress=False)
    assert torch.equal(net.weight, before)
    with pytest.raises(InputError, match="1 clients"):
        federated_bits(Model(net), [r | {"client": 0} for r in items], progress=False)
