"""Old inputs in a subspace: outputs on them stay, whatever the optimiser."""

import warnings

import pytest
import torch
from torch import nn

import sonde
from sonde.core import InputError, SondeWarning
from sonde.data import open_inputs
from sonde.train import SubspaceProjection
from sonde.train.subspace_projection import _batches


def inputs(n, dim, rank, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank, generator=draw, dtype=torch.float64)
    return x @ torch.randn(rank, dim, generator=draw, dtype=torch.float64)


def step(module, made, x):
    made.zero_grad()
    module(x).square().sum().backward()
    made.step()


@pytest.mark.truth("outputs on old inputs before and after steps of Adam")
@pytest.mark.parametrize("n_out", [4, 1])
def test_outputs_on_old_inputs_stay(n_out):
    torch.manual_seed(0)
    layer, old, new = nn.Linear(10, n_out).double(), inputs(30, 10, 3, 0), inputs(30, 10, 10, 1)
    memory = SubspaceProjection(1.0)
    memory.remember(layer, [old[:11], old[11:]])
    assert memory.ranks == {"": 4}  # three directions, and the 1 of the bias
    before, weight = layer(old).detach(), layer.weight.detach().clone()
    made = torch.optim.AdamW(layer.parameters(), 1e-2, weight_decay=0.1)
    with memory.on(layer, made):
        for _ in range(5):
            step(layer, made, new)
    assert float((layer(old) - before).abs().max().detach()) < 1e-12
    assert float((layer.weight - weight).norm().detach()) > 1e-2
    step(layer, made, new)  # outside the block
    assert float((layer(old) - before).abs().max().detach()) > 1e-3


@pytest.mark.truth("outputs of a convolution on old images, and the rank of all patches")
def test_convolutions_and_a_full_memory():
    torch.manual_seed(1)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    old = inputs(4, 2 * 7 * 7, 1, 2).reshape(4, 2, 7, 7)
    memory = SubspaceProjection(1.0)
    memory.remember(conv, [old])
    before = conv(old).detach()
    made = torch.optim.SGD(conv.parameters(), 0.1, momentum=0.9)
    with memory.on(conv, made):
        step(conv, made, torch.randn(4, 2, 7, 7).double())
    assert float((conv(old) - before).abs().max().detach()) < 1e-12
    memory.remember(conv, [torch.randn(9, 2, 7, 7).double()])
    assert memory.ranks[""] == 19
    weight = conv.weight.detach().clone()
    with memory.on(conv, made):
        step(conv, made, torch.randn(4, 2, 7, 7).double())
    assert torch.allclose(conv.weight, weight, atol=1e-13)


@pytest.mark.truth("share of the second moment that the kept directions hold")
def test_energy_counts_what_is_known():
    layer = nn.Linear(6, 2, bias=False).double()
    size = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    x = torch.linalg.qr(inputs(50, 6, 6, 3))[0] * size
    memory = SubspaceProjection(0.9)
    memory.remember(layer, [x])
    share = size.square().cumsum(0) / size.square().sum()
    assert memory.ranks[""] == int((share < 0.9).sum()) + 1
    held = memory.known[""]
    memory.remember(layer, [x])
    assert memory.ranks[""] == held.shape[1]
    with pytest.raises(InputError, match="expected a batch"):
        memory.remember(layer, [])


def test_parameters_that_nothing_holds_are_named():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    memory = SubspaceProjection()
    memory.remember(net, [torch.randn(5, 3)])
    made = torch.optim.SGD(net.parameters(), 0.1)
    told = pytest.warns(SondeWarning, match="2 parameters .*: 1.weight, 1.bias. Freeze")
    with told, memory.on(net, made):
        pass
    net[1].requires_grad_(False)
    with warnings.catch_warnings(action="error"), memory.on(net, made):
        pass


def split_tasks():
    """Two tasks in separate directions: the new one agrees with the first and not the second."""
    draw = torch.Generator().manual_seed(7)
    layer = nn.Linear(9, 4).double()
    x = [inputs(20, 9, 2, seed) for seed in (4, 5)]
    y = [torch.randn(20, 4, generator=draw).double() for _ in range(2)]
    with torch.no_grad():
        y = [layer(a) + 0.3 * b for a, b in zip(x, y, strict=True)]
    new = torch.cat([x[0], x[1]]), torch.cat([y[0], 2 * layer(x[1]).detach() - y[1]])
    return layer, list(zip(x, y, strict=True)), new


def squared(layer):
    return lambda batch: (layer(batch[0]) - batch[1]).square().mean()


@pytest.mark.truth("by hand from gradients 2 (W x - y) x': cosines, and shares in row spaces")
def test_agreement_is_the_cosine_of_gradients_and_the_share_along_old_inputs():
    layer, tasks, new = split_tasks()
    memory = SubspaceProjection(1.0, admit=0.0)
    for x, y in tasks:
        memory.remember(layer, [(x[:7], y[:7]), (x[7:14], y[7:14])], squared(layer))
    found = memory.agreement(layer, [new], squared(layer))[""]

    def gradient(x, y):
        gap = (layer(x) - y).detach()
        return gap.T @ torch.cat([x, torch.ones(len(x), 1).double()], 1)

    for one, (x, y) in zip(found, tasks, strict=True):
        old, own = gradient(x[:14], y[:14]), gradient(*new)
        cosine = float((old * own).sum() / old.norm() / own.norm())
        assert one.cosine == pytest.approx(cosine, rel=1e-9)
        rows = torch.cat([x, torch.ones(len(x), 1).double()], 1)
        along = own @ torch.linalg.pinv(rows) @ rows
        assert one.share == pytest.approx(float(along.norm() / own.norm()), rel=1e-9)
    assert found[0].cosine > 0 > found[1].cosine
    assert memory.ranks == {"": 6 if layer.bias is None else 5}  # the bias is shared


@pytest.mark.truth(
    "outputs on both tasks' inputs: that which disagrees keeps them, the other gains"
)
def test_a_task_that_agrees_admits_updates():
    layer, tasks, new = split_tasks()
    memory = SubspaceProjection(1.0, admit=0.0)
    for task in tasks:
        memory.remember(layer, [task], squared(layer))
    before = [layer(x).detach() for x, _ in tasks]
    loss = [float(squared(layer)(task).detach()) for task in tasks]
    made = torch.optim.Adam(layer.parameters(), 1e-3)
    with memory.on(layer, made, memory.agreement(layer, [new], squared(layer))):
        for _ in range(5):
            made.zero_grad()
            squared(layer)(new).backward()
            made.step()
    assert float((layer(tasks[1][0]) - before[1]).abs().max().detach()) < 1e-12
    assert float(squared(layer)(tasks[0]).detach()) < loss[0] - 1e-4
    with pytest.raises(InputError, match="agreement with 2 tasks"), memory.on(layer, made):
        pass
    with pytest.raises(InputError, match="expected loss"):
        memory.remember(layer, [tasks[0][0]])
    with pytest.raises(InputError, match=r"admit in \[-1, 1\]"):
        SubspaceProjection(admit=2.0)


@pytest.mark.truth("a layer of three inputs by hand: gradient (3, 4, 0) of two tasks (x1) and (x2)")
@pytest.mark.parametrize(
    ("share", "moved"),
    [(0.5, (True, True)), (0.7, (False, True)), (0.9, (False, False))],
)
def test_a_task_along_which_little_moves_admits_nothing(share, moved):
    layer = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(layer.weight)
    memory, eye = SubspaceProjection(1.0, admit=0.5, threshold=share), torch.eye(3).double()
    wanted = torch.tensor([-3.0, -4.0, -0.0]).double()

    def loss(x):
        return (x @ wanted * layer(x)[:, 0]).sum()

    memory.remember(layer, [eye[:1]], loss)
    memory.remember(layer, [eye[1:2]], loss)
    found = memory.agreement(layer, [eye], loss)[""]
    assert [a.cosine for a in found] == pytest.approx([0.6, 0.8])
    assert [a.share for a in found] == pytest.approx([0.6, 0.8])
    made = torch.optim.SGD(layer.parameters(), 0.1)
    with memory.on(layer, made, memory.agreement(layer, [eye], loss)) as penalty:
        assert float(penalty().detach()) == 0
        loss(eye).backward()
        made.step()
        left = [0.3 * moved[0], 0.4 * moved[1], 0.0]
        assert layer.weight.detach()[0].tolist() == pytest.approx(left)
        assert float(penalty().detach()) == pytest.approx(left[0] + left[1])
        made.zero_grad()
        penalty().requires_grad_().backward()
        grad = torch.zeros(3) if layer.weight.grad is None else layer.weight.grad[0]
        assert grad.tolist() == pytest.approx([float(m) for m in (*moved, False)])


def test_the_first_task_has_no_penalty():
    layer = nn.Linear(3, 2)
    memory = SubspaceProjection()
    memory.remember(layer, [torch.randn(5, 3)])
    with memory.on(layer, torch.optim.SGD(layer.parameters(), 0.1)) as penalty:
        assert float(penalty().detach()) == 0
    with pytest.raises(InputError, match=r"threshold in \[0, 1\]"):
        SubspaceProjection(threshold=2.0)


def two_layers():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def classified(net):
    return lambda batch: nn.functional.cross_entropy(net(batch[0]), batch[1])


@pytest.mark.parametrize("wide", [6, 40])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused_by_layer(wide, bad):
    net, x = nn.Sequential(nn.Linear(wide, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(9, wide)
    memory = SubspaceProjection()
    memory.remember(net, [x])
    before = {name: basis.clone() for name, basis in memory.known.items()}
    x[3, 2] = bad
    with pytest.raises(InputError, match="finite inputs of layer '0', got NaN"):
        memory.remember(net, [x])
    assert all(torch.equal(memory.known[name], basis) for name, basis in before.items())
    with torch.no_grad():
        net[0].bias[1] = bad
    with pytest.raises(InputError, match="finite inputs of layer '2'"):
        memory.remember(net, [x[:2]])


def test_gradients_that_are_not_finite_are_refused():
    net, x = two_layers(), torch.randn(4, 6)
    y = torch.zeros(4, dtype=torch.long)
    memory = SubspaceProjection(admit=0.0)

    def broken(batch):
        return classified(net)(batch) * float("nan")

    with pytest.raises(InputError, match=r"remember: expected a finite gradient .* layer '0'"):
        memory.remember(net, [(x, y)], broken)
    memory.remember(net, [(x, y)], classified(net))
    with pytest.raises(InputError, match=r"agreement: expected a finite gradient .* layer '0'"):
        memory.agreement(net, [(x, y)], broken)
    with pytest.raises(InputError, match="agreement: expected a batch or more, got none"):
        memory.agreement(net, [], classified(net))


class Named(nn.Module):
    """A layer that takes its inputs by name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, *, values, shift):
        return self.layer(values + shift)


@pytest.mark.truth("the same inputs as tensors")
def test_batches_are_tensors_or_mappings():
    torch.manual_seed(6)
    net, x = Named(), torch.randn(4, 6)
    memory, plain = SubspaceProjection(1.0), SubspaceProjection(1.0)
    memory.remember(net, [{"values": x, "shift": 2.0}])
    plain.remember(net.layer, [x + 2])
    assert torch.equal(memory.known["layer"], plain.known[""])


@pytest.mark.parametrize("kind", [tuple, list])
def test_pairs_of_inputs_and_labels_are_refused_without_a_loss(kind):
    net, x = two_layers(), torch.randn(4, 6)
    pair = kind((x, torch.zeros(4, dtype=torch.long)))
    memory = SubspaceProjection()
    with pytest.raises(InputError, match=rf"got {kind.__name__}. Pass inputs alone.* or loss="):
        memory.remember(net, [pair])
    memory.remember(net, [pair], classified(net))
    with_loss = memory.known
    memory = SubspaceProjection()
    memory.remember(net, [x])
    assert all(torch.equal(memory.known[name], basis) for name, basis in with_loss.items())


def test_what_is_no_list_of_batches_is_refused():
    net, x = two_layers(), torch.randn(4, 6)
    source = open_inputs(sonde.load("sonde:digits"), "sonde:digits/train", limit=4)
    memory = SubspaceProjection()
    for given in (x, {"x": x}, "sonde:digits"):
        for loss in (None, classified(net)):
            told = f"expected an iterable of batches, got {type(given).__name__}. Pass a list"
            with pytest.raises(InputError, match=told):
                memory.remember(net, given, loss)
    for given in (source, 3):  # the type checker of these tests is before remember
        with pytest.raises(InputError, match=f"got {type(given).__name__}. Pass a list"):
            _batches("remember", given)
    with pytest.raises(InputError, match=r"a Model or an nn\.Module, got str"):
        memory._layers("remember", "sonde:digits")
    memory.remember(net, (part for part in x.split(2)))
    assert set(memory.ranks) == {"0", "2"}


def test_another_model_or_its_optimiser_is_refused():
    net, x, y = two_layers(), torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
    memory = SubspaceProjection(admit=0.0)
    memory.remember(net, [(x, y)], classified(net))
    made = torch.optim.SGD(net.parameters(), 0.1)
    found = memory.agreement(net, [(x, y)], classified(net))
    for other, told in (
        (nn.Sequential(nn.Linear(3, 2)), "layer '0' has 7 inputs with the bias, got one with 4"),
        (nn.Sequential(nn.Linear(6, 2)), "layer '2' has 6 inputs .*, got one with None"),
    ):
        with pytest.raises(InputError, match=told), memory.on(other, made, found):
            pass
        for call in (
            lambda other=other: memory.agreement(other, [(x, y)], classified(other)),
            lambda other=other: memory.scaled_weights(other, found),
            lambda other=other: memory.remember(other, [(x, y)], classified(other)),
        ):
            with pytest.raises(InputError, match=told):
                call()
    foreign = torch.optim.SGD(two_layers().parameters(), 0.1)
    with pytest.raises(InputError, match="without any of their"), memory.on(net, foreign, found):
        pass
    half = torch.optim.SGD(net[2].parameters(), 0.1)
    with memory.on(net, half, found):
        pass
    net.requires_grad_(False)  # nothing of the net moves, so nothing is unprotected
    with memory.on(net, foreign, found):
        pass
    with pytest.raises(InputError, match="1 tasks at layer '0', got None"):
        memory.scaled_weights(net, {})


def test_agreement_needs_admit_and_a_first_task_needs_no_memory():
    net, x = two_layers(), torch.randn(4, 6)
    memory = SubspaceProjection()
    memory.remember(net, [x])
    with pytest.raises(InputError, match="agreement: expected admit="):
        memory.agreement(net, [x], lambda x: net(x).sum())
    made = torch.optim.SGD(net.parameters(), 0.1)
    with warnings.catch_warnings(action="error"), SubspaceProjection().on(net, made) as penalty:
        assert float(penalty()) == 0
