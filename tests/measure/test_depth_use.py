import pytest
import torch
from tests.student import student
from torch import nn

import attention_models
import models
from narrow import present
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.measure import depth_use


class Block(nn.Module):
    """What it is given, and a linear map of it."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x + x @ self.weight.T


def stack(weights):
    return nn.Sequential(*(Block(w) for w in weights)).eval()


def used(model, rows, **options):
    inputs = open_inputs(Model(model), list(rows))
    return depth_use(model, inputs.batches(0, len(rows)), **options)


@pytest.mark.truth("closed form of a linear stream")
def test_blocks_that_add_half_of_their_input():
    found = used(stack([0.5 * torch.eye(4)] * 6), torch.randn(8, 4))
    assert found.contribution.tolist() == pytest.approx([0.5] * 6)
    assert found.cosine.tolist() == pytest.approx([1.0] * 6)
    later = torch.ones(6, 6).triu(1).bool()
    assert torch.allclose(found.skip_effect[later], torch.tensor(1 / 3).double(), atol=1e-6)
    assert not found.skip_effect[~later].any()
    assert float(found) == pytest.approx(0.5) == found.null
    assert found.depth == pytest.approx(3.0)


@pytest.mark.truth("the value without each example in turn")
def test_the_error_is_the_jackknife_over_examples():
    draw = torch.Generator().manual_seed(3)
    net = stack([torch.randn(3, 3, generator=draw) / 2 for _ in range(5)])
    rows = list(torch.randn(6, 3, generator=draw))
    each = [float(used(net, rows[:i] + rows[i + 1 :])) for i in range(6)]
    spread = sum((x - sum(each) / 6) ** 2 for x in each) * 5 / 6
    assert used(net, rows).se == pytest.approx(spread**0.5 * student(6), rel=1e-4)
    assert used(net, rows).flags == ("few_groups",)


@pytest.mark.truth("a rotation and a map of zeros")
def test_what_is_orthogonal_and_what_does_nothing():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    found = used(stack([turn, torch.zeros(2, 2), -0.5 * torch.eye(2)]), torch.randn(5, 2))
    assert found.contribution.tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert float(found.cosine[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(found.cosine[2]) == pytest.approx(-1.0)
    assert float(found.skip_effect[1, 2]) == 0.0
    assert float(found.answer_change[1]) == 0.0


def test_a_block_that_owns_the_figure_is_named():
    """Embeddings are short: the first block adds ten times their length, the others add alike."""
    found = used(stack([10 * torch.eye(2), *[0.5 * torch.eye(2)] * 4]), torch.randn(5, 2))
    assert "one_block" in found.flags
    assert "makes 83% of all contributions; without it 0.75" in found.conventions["one block"]
    assert found.value == pytest.approx(1.5 / 12)
    assert found.without_owner == pytest.approx(0.75)
    even = used(stack([0.5 * torch.eye(2)] * 4), torch.randn(5, 2))
    assert "one_block" not in even.flags
    assert even.without_owner == pytest.approx(float(even.value)) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def llama():
    return models.llama()


@pytest.mark.truth("hidden states of transformers, and its layers called one by one")
def test_a_language_model(llama):
    draw = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": torch.randint(3, models.VOCABULARY, (n,), generator=draw)} for n in (9, 6)
    ]
    inputs = open_inputs(Model(llama, task="causal"), rows, batch_size=2)
    found = depth_use(llama, inputs.batches(0, 2), leave_out=1)
    ratios = []
    for row in rows:
        with torch.no_grad():
            out = llama(input_ids=row["input_ids"][None], output_hidden_states=True)
        # the last of the hidden states is after the final norm: blocks but the last
        h = torch.stack(out.hidden_states)[:-1, 0, 1:].double()
        ratios.append(h.diff(dim=0).norm(dim=-1) / h[:-1].norm(dim=-1))
    want = torch.cat(ratios, 1).mean(1)
    assert found.contribution[: len(want)].tolist() == pytest.approx(want.tolist(), rel=1e-4)
    assert found.n == 2
    assert float(found.answer_change.min()) > 0
    assert bool((found.largest_skip_effect >= found.skip_effect).all())


def hooked(llama, ids, zero=None):
    """Return what the blocks' parts got and gave, and the log probabilities, by plain hooks."""
    seen, handles = {}, []

    def take(name):
        return lambda module, args, out: seen.__setitem__(name, first(out))

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    def none(module, args, out):
        nothing = torch.zeros_like(first(out))
        return (nothing, *out[1:]) if isinstance(out, tuple) else nothing

    for name, module in llama.named_modules():
        if name == "model.embed_tokens" or name.endswith(("self_attn", "mlp")):
            handles.append(module.register_forward_hook(take(name)))
        if name == zero:
            handles.append(module.register_forward_hook(none))
    with torch.no_grad():
        log_p = llama(input_ids=ids[None]).logits[0, 1:].double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    return {name: x[0, 1:].double() for name, x in seen.items()}, log_p


@pytest.mark.truth("each attention and MLP hooked and silenced by hand")
def test_sublayers_of_a_language_model():
    llama = models.llama()
    with torch.no_grad():
        llama.model.layers[1].self_attn.o_proj.weight.zero_()
        llama.model.layers[2].mlp.down_proj.weight.zero_()
        llama.model.layers[0].mlp.down_proj.weight.mul_(4)
    draw = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, models.VOCABULARY, (n,), generator=draw) for n in (9, 6, 7)]
    rows = [{"input_ids": ids} for ids in texts]
    inputs = open_inputs(Model(llama, task="causal"), rows, batch_size=2)
    found = depth_use(llama, inputs.batches(0, 3), leave_out=1, sublayers=True)
    parts = present(found.sublayers)
    names = [f"model.layers.{i}.{part}" for i in range(3) for part in ("self_attn", "mlp")]
    assert parts.names == tuple(names)
    assert "whole_blocks" not in found.flags
    sizes, cosines, changes, nats = ({name: [] for name in names} for _ in range(4))
    for ids in texts:
        seen, log_p = hooked(llama, ids)
        stream = seen["model.embed_tokens"]
        for name in names:
            sizes[name].append(seen[name].norm(dim=1) / stream.norm(dim=1))
            cosines[name].append(torch.cosine_similarity(stream, seen[name], dim=1, eps=0.0))
            stream = stream + seen[name]
            other = hooked(llama, ids, zero=name)[1]
            changes[name].append((other.exp() - log_p.exp()).norm(dim=1))
            nats[name].append((log_p.exp() * (log_p - other)).sum(1))
    for i, name in enumerate(names):
        assert float(parts.contribution[i]) == pytest.approx(mean(sizes[name]), rel=1e-4)
        assert float(parts.answer_change[i]) == pytest.approx(mean(changes[name]), rel=1e-4)
        assert float(parts.answer_kl_nats[i]) == pytest.approx(mean(nats[name]), rel=1e-4, abs=1e-9)
        without = [mean(sizes[name][:k] + sizes[name][k + 1 :]) for k in range(3)]
        error = (torch.tensor(without).var() * 2 * 2 / 3) ** 0.5 * student(3)
        assert float(parts.contribution_se[i]) == pytest.approx(float(error), rel=1e-3, abs=1e-9)
        wanted = pytest.approx(mean(cosines[name]), abs=1e-5, nan_ok=True)
        assert float(parts.cosine[i]) == wanted
    assert parts.least_needed(2) == ("model.layers.1.self_attn", "model.layers.2.mlp")
    for figure in (parts.contribution, parts.answer_change, parts.answer_kl_nats):
        assert (figure == 0).nonzero().flatten().tolist() == [2, 5]


def mean(values):
    return float(torch.cat(values).mean())


def encoder(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def test_blocks_without_a_sum_of_sublayers_are_whole():
    rows = torch.randn(8, 5, 8, generator=torch.Generator().manual_seed(0))
    pre = used(encoder(norm_first=True), rows, sublayers=True)
    parts = present(pre.sublayers)
    names = [f"layers.{i}.{part}" for i in range(2) for part in ("self_attn", "linear2")]
    assert parts.names == tuple(names)
    assert pre.flags == ()
    post = used(encoder(norm_first=False), rows, sublayers=True)
    assert post.flags == ("whole_blocks",)
    assert present(post.sublayers).least_needed() == ()
    assert "layers.0 ends in layers.0.norm2 (LayerNorm)" in post.conventions["whole blocks"]
    assert bool((post.contribution > 0).all())


class Sometimes(nn.Module):
    """A sum of its input and a linear map of it in batches of two examples, else twice that."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return (x + self.inner(x)) * (1 if len(x) == 2 else 2)


def test_a_block_that_is_no_sum_in_a_later_batch_is_whole():
    net = nn.Sequential(Sometimes(), Sometimes())
    for n, names in ((10, ("0.inner", "1.inner")), (9, ())):
        inputs = open_inputs(Model(net), list(torch.randn(n, 4)), batch_size=2)
        found = depth_use(net, inputs.batches(0, n), sublayers=True)
        assert present(found.sublayers).names == names
        assert found.flags == (() if names else ("whole_blocks",))
    assert "0 is not such a sum for every batch" in found.conventions["whole blocks"]


class Shared(nn.Module):
    """One module in front of the sum and in it: without it there is no stream either."""

    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x):
        x = self.same(x)
        return x + self.same(x.cos())


def test_a_module_that_runs_twice_is_no_sublayer():
    found = used(nn.Sequential(Shared(), Shared()), torch.randn(8, 4), sublayers=True)
    assert present(found.sublayers).names == ()
    assert found.flags == ("whole_blocks",)


def test_sublayers_in_half_precision():
    llama = models.llama().bfloat16()
    rows = [{"input_ids": torch.arange(3, n)} for n in (5, 12)]
    inputs = open_inputs(Model(llama, task="causal"), rows, batch_size=1)
    found = depth_use(llama, inputs.batches(0, 2), leave_out=4, sublayers=True)
    assert len(present(found.sublayers).names) == 6
    assert bool(present(found.sublayers).contribution_se.isnan().all())


def test_a_parallel_block_has_no_sublayer_after_another():
    net = attention_models.TEXTS["gpt_neox"]()
    ids = {"input_ids": torch.arange(3, 9)}
    inputs = open_inputs(Model(net, task="causal"), [ids])
    found = depth_use(net, inputs.batches(0, 1), sublayers=True)
    assert found.flags == ("whole_blocks",)
    assert "gpt_neox.layers.0 is parallel" in found.conventions["whole blocks"]


def test_without_logits_there_is_no_change_of_an_answer(llama):
    inputs = open_inputs(Model(llama.model, task="encoder"), [{"input_ids": torch.arange(3, 9)}])
    found = depth_use(llama.model, inputs.batches(0, 1))
    assert bool(found.answer_change.isnan().all())


def test_one_answer_for_an_image_counts_for_its_patches():
    vit = models.vit()
    inputs = open_inputs(Model(vit), list(torch.randn(2, 3, 24, 24)))
    found = depth_use(vit, inputs.batches(0, 2), sublayers=True)
    names = [f"vit.layers.{i}.{part}" for i in range(3) for part in ("attention", "mlp")]
    assert present(found.sublayers).names == tuple(names)  # one dropout module runs behind both
    assert bool((found.answer_kl_nats > 0).all())


def test_a_block_that_changes_the_width_is_named():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    with pytest.raises(InputError, match="depth_use: expected blocks that keep the shape"):
        used(net, torch.randn(3, 4))


@pytest.mark.truth("the rows without the row that is not finite, and without the copies")
def test_rows_that_are_not_finite_are_left_out_and_copies_are_one_example():
    draw = torch.Generator().manual_seed(6)
    net = stack([torch.randn(3, 3, generator=draw) / 2 for _ in range(4)])
    rows = torch.randn(9, 3, generator=draw)
    plain = used(net, rows)
    for broken in (float("nan"), float("inf"), 0.0):  # a stream of length 0 has no relative update
        found = used(net, torch.cat([rows, torch.full((1, 3), broken)]))
        assert "nonfinite" in found.flags
        assert "1 token" in found.conventions["not finite"]
        assert found.n == 9
        assert float(found) == pytest.approx(float(plain))
        assert found.se == pytest.approx(present(plain.se))
    twice = used(net, torch.cat([rows, rows]))
    assert "copies" in twice.flags
    assert twice.n == 9
    assert twice.se == pytest.approx(present(plain.se), rel=1e-5)
    assert "nonfinite" not in plain.flags
