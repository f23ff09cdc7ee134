"""Which changes of a model its hash must see, and which it must not."""

import copy

import pytest
import torch
from torch import nn

from models import gpt2, llama, mlp
from narrow import expect
from sonde.tap import config_hash, fingerprint


def test_two_builds_copies_files_and_compiled_models_are_one(tmp_path):
    net = gpt2()
    first = fingerprint(net)
    net.save_pretrained(tmp_path)
    loaded = type(net).from_pretrained(tmp_path)
    for other in (gpt2(), copy.deepcopy(net), net.to("cpu"), loaded, net.train()):
        assert fingerprint(other) == first
    assert fingerprint(expect(nn.Module, torch.compile(net, backend="eager"))) == first
    assert fingerprint(loaded, full=True) == fingerprint(gpt2(), full=True) != first


def test_one_changed_element_is_seen_whichever_it_is():
    net = mlp(40, 40)
    first, weight = fingerprint(net), expect(nn.Linear, net[0]).weight
    with torch.no_grad():
        for i in (0, 77, 401, 1599):
            kept = weight.view(-1)[i].clone()
            weight.view(-1)[i] += 1e-6
            assert fingerprint(net) != first
            weight.view(-1)[i] = kept
    assert fingerprint(net) == first


def test_changes_that_only_the_full_hash_must_see():
    net = mlp(40, 40)
    quick, full = fingerprint(net), fingerprint(net, full=True)
    flat = expect(nn.Linear, net[0]).weight.view(-1)
    with torch.no_grad():
        flat[[3, 5]] = flat[[5, 3]]
    assert fingerprint(net, full=True) != full
    assert fingerprint(net) == quick


def test_type_name_and_shape_are_part_of_it():
    net = mlp()
    assert fingerprint(copy.deepcopy(net).bfloat16()) != fingerprint(net)
    assert fingerprint(nn.Sequential(nn.Identity(), net)) != fingerprint(net)
    flat, tall = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        tall.weight.copy_(flat.weight.view(2, 3))
    assert fingerprint(flat) != fingerprint(tall)


def test_buffers_that_are_not_saved_do_not_count():
    net = mlp()
    first = fingerprint(net)
    net[0].register_buffer("cache", torch.ones(3), persistent=False)
    assert fingerprint(net) == first
    net[0].register_buffer("mean", torch.ones(3))
    assert fingerprint(net) != first


def test_tied_weights_do_not_hide_each_other():
    tied = gpt2()
    untied = copy.deepcopy(tied)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    assert fingerprint(untied) == fingerprint(tied)
    with torch.no_grad():
        untied.lm_head.weight[2, 2] += 1
    assert fingerprint(untied) != fingerprint(tied)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.bool])
def test_tensors_of_any_type_are_hashed(dtype):
    def holding(values):
        net = nn.Module()
        net.register_buffer("x", torch.tensor(values).to(dtype))
        return fingerprint(net)

    assert holding([0, 1, 1, 0, 1]) != holding([0, 1, 0, 0, 1])
    assert holding([]) != holding([0])


def test_the_configuration_hash_ignores_type_name_and_kernel():
    config = llama().config
    other = copy.deepcopy(config)
    other.dtype, other._name_or_path, other.transformers_version = "bfloat16", "there", "0.0"
    assert config_hash(other) == config_hash(config)
    other.rms_norm_eps = 0.5
    assert config_hash(other) != config_hash(config)
    assert config_hash(None) == config_hash(object())
