"""Callers under which rows, edits or gradients would be wrong: refused, or right."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sonde
from models import gpt2, llama, mlp
from sonde import editing, shortening, training
from sonde.compress import TokenPruning
from sonde.core.edit import Scale
from sonde.core.errors import InputError, SiteError, StateError
from sonde.layers import Adapter
from sonde.tap import Tap

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Pull(nn.Module):
    def forward(self, x):
        return x.square().mean()


def replica_of(net):
    """Return what ``torch.nn.parallel.replicate`` makes for a device, on this one."""
    parts = list(net.modules())
    copies = {id(part): part._replicate_for_data_parallel() for part in parts}
    for part in parts:
        copy = copies[id(part)]
        for name, child in part._modules.items():
            copy._modules[name] = None if child is None else copies[id(child)]
        for name, p in part._parameters.items():
            if p is not None:
                setattr(copy, name, p.view_as(p))
    return copies[id(net)]


def in_replicas(net, x):
    """Run as ``nn.DataParallel`` does: a replica and a part of the rows in each thread."""
    replicas = [replica_of(net), replica_of(net)]
    with ThreadPoolExecutor(2) as pool:
        return torch.cat(list(pool.map(lambda net, x: net(x), replicas, x.chunk(2))))


@pytest.mark.truth("the module called by itself")
def test_replicas_are_edited_and_run_layers_but_are_not_read():
    net = mlp()
    opened = (lambda: Tap(net, "0"), lambda: training(net, {"0": Pull()}))
    for one in opened:
        with one(), pytest.raises(SiteError, match=r"replicas of nn\.DataParallel"):
            in_replicas(net, X)
    other = {"clean": {"0:out": net[0](X)}}
    with editing(net, Scale(2.0), "0", others=other), pytest.raises(SiteError, match="replicas"):
        in_replicas(net, X)
    with editing(net, Scale(2.0), "0"):
        assert torch.equal(in_replicas(net, X), torch.cat([net(part) for part in X.chunk(2)]))


@pytest.mark.truth("the parts of the batch, called one after the other")
def test_a_guard_sees_replicas_as_forwards_of_their_own():
    net = mlp()
    probe = sonde.fit("mahalanobis", sonde.read(net, torch.randn(60, 8), sites=["0"]))
    with sonde.Guard(net, probe, alpha=None) as guard:
        in_replicas(net, X)
        assert guard.n_forwards == 2
        assert all(len(x) == 3 for x in guard.scores.values())


@pytest.mark.truth("the model with the layer, called by itself")
def test_a_replica_runs_its_own_copy_of_an_inserted_layer():
    body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
    layer, ran = Adapter(16, 3), []
    for p in layer.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    new = sonde.inserted(nn.Sequential(body, nn.Linear(16, 3)), {"0": layer})
    replica = replica_of(new)
    for part in replica.modules():
        if isinstance(part, Adapter):
            part.down.register_forward_pre_hook(lambda part, args: ran.append(part))
    torch.testing.assert_close(replica(X), new(X))
    assert replica[0][1].inserted_0 is not layer
    assert replica[0][1].inserted_0.down in ran


@pytest.mark.truth("generation without an assistant")
def test_assisted_decoding_is_edited_everywhere_or_refused():
    net, ids = gpt2(), torch.tensor([[5, 9, 11, 7]])
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for more in ({"assistant_model": gpt2()}, {"prompt_lookup_num_tokens": 2}):
        with editing(net, Scale(-1.0), "transformer.h.1"):
            assert torch.equal(net.generate(ids, **how, **more), net.generate(ids, **how))
        for where in ("generated", "last", ["prompt", 3]):
            with (
                pytest.raises(InputError, match=r"assisted decoding .* Leave out assistant_model"),
                editing(net, Scale(-1.0), "transformer.h.1", where=where),
            ):
                net.generate(ids, **how, **more)


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_changed_model_inside_a_checkpoint_is_refused(reentrant):
    net, x = mlp(), X.clone().requires_grad_()
    with (
        editing(net, Scale(3.0), "0"),
        pytest.raises(StateError, match="recomputed in the backward"),
    ):
        checkpoint(net, x, use_reentrant=reentrant)
    with editing(net, Scale(3.0), "0"), torch.no_grad():
        checkpoint(net, X, use_reentrant=reentrant)
    text, embed = llama(), nn.Embedding(40, llama().config.hidden_size)

    def run(states):
        return text(inputs_embeds=states).logits

    states = embed(torch.randint(3, 40, (2, 12)))
    rule = TokenPruning(0.5, after=(0,))
    with shortening(text, rule), pytest.raises(StateError, match=r"shortening: .* is recomputed"):
        checkpoint(run, states, use_reentrant=reentrant)
