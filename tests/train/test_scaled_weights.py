"""Weights that one task scales along old inputs: the formula, its gradient, and what stays."""

import pytest
import torch
from torch import nn
from torch.nn.functional import pad, unfold

from sonde.core import InputError
from sonde.train import ScaledWeights, SubspaceProjection
from sonde.train.scaled_weights import _check


def directions(dim, rank, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, rank, generator=draw, dtype=torch.float64))[0]


def moved(scaled, seed=3):
    """Change the matrices away from the identity, also off the diagonal."""
    draw = torch.Generator().manual_seed(seed)
    for p in scaled.parameters():
        p.data += torch.randn(p.shape, generator=draw, dtype=p.dtype)
    return scaled


@pytest.mark.truth("identities: outputs of the plain layers, bit for bit")
def test_identities_leave_layers_as_they_are():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    ).double()
    scaled = ScaledWeights({"0": [directions(19, 4, 0), directions(19, 2, 1)], "3": []})
    x = torch.randn(5, 2, 8, 8).double()
    before = net(x)
    with scaled.on(net):
        assert torch.equal(net(x), before)
        moved(scaled)
        assert not torch.allclose(net(x), before)
    assert torch.equal(net(x), before)
    assert scaled.n_numbers == 16 + 4


@pytest.mark.truth("by hand: W + W sum B (Q - I) B', and the gradient (W B)' G B of each Q")
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_and_their_gradient(bias):
    torch.manual_seed(1)
    layer, dim = nn.Linear(7, 4, bias=bias).double(), 7 + bias
    bases = [directions(dim, 3, 2), directions(dim, 2, 5)]
    scaled, x = moved(ScaledWeights({"": bases})), torch.randn(6, 7).double()
    rows = torch.cat([x, torch.ones(6, 1).double()], 1) if bias else x
    whole = torch.cat([layer.weight, layer.bias[:, None]], 1) if bias else layer.weight
    whole, matrices = whole.detach(), [p.detach() for p in scaled.parameters()]
    wanted = whole.clone()
    for b, q in zip(bases, matrices, strict=True):
        wanted += whole @ b @ q @ b.T - whole @ b @ b.T
    with scaled.on(layer):
        out = layer(x)
    assert torch.allclose(out, rows @ wanted.T, atol=1e-12)
    out.pow(3).sum().backward()
    g = (3 * out.detach().square()).T @ rows
    for b, p in zip(bases, scaled.parameters(), strict=True):
        assert torch.allclose(p.grad, (whole @ b).T @ g @ b, atol=1e-10)
    change = sum(b @ (q - torch.eye(len(q))).T @ b.T for b, q in zip(bases, matrices, strict=True))
    assert torch.allclose(layer.weight.grad, (g + g @ change)[:, :7], atol=1e-10)


@pytest.mark.truth("patches of the image times the scaled kernel")
def test_convolutions():
    torch.manual_seed(2)
    conv = nn.Conv2d(2, 3, (3, 2), stride=2, padding=1, dilation=2).double()
    basis = directions(13, 4, 6)
    scaled, x = moved(ScaledWeights({"": [basis]})), torch.randn(2, 2, 9, 8).double()
    whole = torch.cat([conv.weight.flatten(1), conv.bias[:, None]], 1).detach()
    (q,) = (p.detach() for p in scaled.parameters())
    whole = whole - whole @ basis @ (torch.eye(4).double() - q) @ basis.T
    patches = pad(unfold(x, (3, 2), 2, 1, 2).mT, (0, 1), value=1.0)
    with scaled.on(conv):
        out = conv(x)
    assert torch.allclose(out.flatten(2).mT, patches @ whole.T, atol=1e-12)


def tasks_that_disagree():
    """Two tasks on separate inputs; the third asks for other answers on the first one's inputs."""
    draw = torch.Generator().manual_seed(7)
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    span = directions(9, 4, 8)
    x = [torch.randn(20, 2, generator=draw).double() @ span[:, 2 * i : 2 * i + 2].T for i in (0, 1)]
    y = [torch.randn(20, 2, generator=draw).double() for _ in range(2)]
    return net, list(zip(x, y, strict=True)), (x[0], -y[0])


def squared(net):
    return lambda batch: (net(batch[0]) - batch[1]).square().mean()


def learned(net, memory, new, with_scales):
    """Learn the new task; return its scaled weights and its loss in the end."""
    found = memory.agreement(net, [new], squared(net))
    scaled = memory.scaled_weights(net, found) if with_scales else ScaledWeights({})
    made = torch.optim.Adam([*net.parameters(), *scaled.parameters()], 2e-2)
    with memory.on(net, made, found), scaled.on(net):
        for _ in range(60):
            made.zero_grad()
            squared(net)(new).backward()
            made.step()
        return scaled, float(squared(net)(new).detach())


@pytest.mark.truth(
    "outputs on old inputs before and after, and the new loss without scaled weights"
)
def test_a_task_that_disagrees_is_learned_and_the_old_ones_stay():
    losses = []
    for with_scales in (False, True):
        net, tasks, new = tasks_that_disagree()
        memory = SubspaceProjection(1.0, admit=1.0)
        for task in tasks:
            memory.remember(net, [task], squared(net))
        before = [net(x).detach() for x, _ in tasks]
        scaled, loss = learned(net, memory, new, with_scales)
        losses.append(loss)
        assert bool(scaled.n_numbers) is with_scales
        for (x, _), out in zip(tasks, before, strict=True):
            assert float((net(x) - out).abs().max().detach()) < 1e-10
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.truth(
    "by hand: gradient (3, 4, 0) of a new task, (3, 0, 0) and (0, -4, 0) of old ones"
)
@pytest.mark.parametrize(
    ("admit", "share", "ranks"), [(0.0, 0.5, [1]), (0.0, 0.9, []), (1.0, 0.5, [1, 1])]
)
def test_only_tasks_that_disagree_are_scaled(admit, share, ranks):
    layer, eye = nn.Linear(3, 1, bias=False).double(), torch.eye(3).double()
    memory = SubspaceProjection(1.0, admit=admit, threshold=share)

    def loss_of(wanted):
        return lambda x: (x @ torch.tensor(wanted).double() * layer(x)[:, 0]).sum()

    memory.remember(layer, [eye[:1]], loss_of([3.0, 0.0, 0.0]))
    memory.remember(layer, [eye[1:2]], loss_of([0.0, -4.0, 0.0]))
    found = memory.agreement(layer, [eye], loss_of([3.0, 4.0, 0.0]))
    assert [a.cosine for a in found[""]] == pytest.approx([0.6, -0.8])
    assert [a.share for a in found[""]] == pytest.approx([0.6, 0.8])
    scaled = memory.scaled_weights(layer, found)
    assert [len(p) for p in scaled.parameters()] == ranks
    if ranks == [1]:
        assert scaled.scales[0].basis.abs().flatten().tolist() == pytest.approx([0.0, 1.0, 0.0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="expected admit="):
        SubspaceProjection().scaled_weights(nn.Linear(3, 2), {})
    wrong = ScaledWeights({"0": [directions(4, 2, 0)]})
    with (
        pytest.raises(InputError, match="directions of 5 numbers at 0"),
        wrong.on(nn.Sequential(nn.Linear(4, 2))),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"layer or a convolution .* at 0, got none"),
        wrong.on(nn.Sequential(nn.Tanh())),
    ):
        pass
    ring = nn.Sequential(nn.Conv2d(1, 1, 2, padding=1, padding_mode="circular", bias=False))
    with pytest.raises(InputError, match="zero padding at 0, got circular"), wrong.on(ring):
        pass


def test_a_model_in_half_precision_keeps_its_type():
    torch.manual_seed(4)
    net, x = nn.Sequential(nn.Linear(7, 4)), torch.randn(6, 7)
    scaled = moved(ScaledWeights({"0": [directions(8, 3, 2).float()]}))
    with scaled.on(net):
        wanted = net(x)
    net.bfloat16()
    with scaled.on(net):
        found = net(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([directions(5, 2, 0) * float("nan")], "finite directions, got NaN"),
        ([directions(5, 2, 0) / 0], "finite directions, got NaN"),
        ([directions(5, 2, 0), directions(5, 2, 0) * 3], "differ from the identity by 8"),
        ([directions(5, 2, 0)[:, [0, 0]]], "differ from the identity by 1"),
        ([directions(5, 2, 0) * 1.001], "differ from the identity by 0.002"),
        ([directions(2, 2, 0).repeat(1, 2)], "at most 2 directions of 2 numbers, got 4"),
    ],
)
def test_what_are_no_directions_is_refused(given, told):
    with pytest.raises(InputError, match=f"ScaledWeights: expected at layer '0' .*{told}"):
        ScaledWeights({"0": given})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (directions(5, 2, 0), r"a list of matrices \(dim, rank\), got Tensor. Pass \[directions\]"),
        (None, "got NoneType"),
        ([directions(5, 2, 0)[:, 0]], r"got \(5,\). Pass one direction as"),
        ([[1.0, 0.0]], "got list"),
        ([torch.eye(5, dtype=torch.long)], "of numbers with a point"),
    ],
)
def test_what_are_no_matrices_is_refused(given, told):
    with pytest.raises(InputError, match=f"ScaledWeights: expected at layer '0' .*{told}"):
        _check("0", given)  # the type checker of these tests is before the class


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_directions_may_be_rounded(dtype):
    for seed in range(5):
        given = directions(65, 20, seed)
        scaled = ScaledWeights({"0": [given.to(dtype), given[:, :0].to(dtype)]})
        assert scaled.n_numbers == 400
    ScaledWeights({"0": [directions(65, 20, 0) * 1.0004]})
    with pytest.raises(InputError, match="orthonormal"):
        ScaledWeights({"0": [(directions(65, 20, 0) * 1.02).to(dtype)]})
