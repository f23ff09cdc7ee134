"""Weights in a file of their own, beside a factory; names of classes in a file."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sonde import load
from sonde.core.errors import InputError
from sonde.data.opening import names_of_classes

NET = """
import torch
from torch import nn


def make():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).eval()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "nets_with_files.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("nets_with_files", None)
    return tmp_path


def net(seed=0):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).eval()
    made.get_buffer("1.running_mean").normal_()
    return made


@pytest.mark.truth("torch: load_state_dict of the same file into the same module")
def test_every_form_of_a_file_gives_the_answers_of_its_module(place):
    made, x = net(), torch.randn(4, 3)
    state = made.state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    compiled = {f"_orig_mod.module.{name}": value for name, value in state.items()}
    torch.save(state, place / "plain.pth")
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"state": {}}}, place / "deep.pt")
    torch.save(compiled, place / "compiled.ckpt")
    save_file(dict(state), place / "plain.safetensors")
    shutil.copy(place / "deep.pt", place / "deep.pth.tar")
    for file in ("plain.pth", "deep.pt", "deep.pth.tar", "compiled.ckpt", "plain.safetensors"):
        found = load(f"nets_with_files:make@{file}", device="cpu")
        assert torch.equal(found.module(x), made(x)), file
        assert found.name == f"nets_with_files:make@{file}"
    assert not torch.equal(load("nets_with_files:make", device="cpu").module(x), made(x))


@pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning", "ignore:.*jit:FutureWarning")
def test_a_file_that_does_not_fit_or_runs_code_is_refused_with_the_names(place):
    state = dict(net().state_dict())
    torch.save({k: v for k, v in state.items() if k != "2.bias"}, place / "short.pt")
    torch.save(state | {"3.weight": torch.zeros(1)}, place / "more.pt")
    torch.save(state | {"2.weight": torch.zeros(3, 5)}, place / "shape.pt")
    torch.save(net(), place / "whole.pt")
    torch.save([1, 2], place / "list.pt")
    (place / "noise.pt").write_bytes(b"not a file of torch")
    torch.jit.save(torch.jit.trace(net(), torch.zeros(1, 3)), place / "traced.pt")
    (place / "net.onnx").write_bytes(b"x")
    for file, message in {
        "short.pt": r"the file lacks 2\.bias",
        "more.pt": r"the module lacks 3\.weight",
        "shape.pt": r"2\.weight of shape \(2, 5\).*got \(3, 5\)",
        "whole.pt": r"more than tensors.*Save only model\.state_dict",
        "list.pt": r"state dictionary.*got list",
        "noise.pt": r"more than tensors, or is damaged",
        "traced.pt": r"TorchScript programme.*factory",
        "none.pt": r"no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            load(f"nets_with_files:make@{file}")
    for file in ("traced.pt", "net.onnx"):
        with pytest.raises(InputError, match="Name the factory of the Python module"):
            load(file)


def test_a_model_of_timm_says_how_to_get_it():
    with pytest.raises(InputError, match=r"needs timm.*pip install timm"):
        load("timm:resnet18")


def test_a_sentence_model_is_asked_of_the_hub_by_its_whole_name():
    with pytest.raises(InputError, match=r"no directory sentence-transformers/all-none"):
        load("sentence-transformers:all-none")


def test_names_of_classes_come_from_a_file(tmp_path):
    names = ["tench", "cock, the bird", "hen"]
    (tmp_path / "names.txt").write_text("\n".join([*names, ""]))
    (tmp_path / "list.json").write_text(json.dumps(names))
    (tmp_path / "numbered.json").write_text(json.dumps({"2": "hen", "0": names[0], "1": names[1]}))
    pairs = {str(i): [f"n{i}", name] for i, name in enumerate(names)}
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    for file in ("names.txt", "list.json", "numbered.json", "pairs.json"):
        assert names_of_classes(str(tmp_path / file)) == tuple(names), file
    assert names_of_classes("cat, dog") == ("cat", "dog")
    (tmp_path / "bad.json").write_text('{"1": "a"}')
    for file, message in {"bad.json": "expected names", "no.txt": "no such file"}.items():
        with pytest.raises(InputError, match=message):
            names_of_classes(str(tmp_path / file))


def test_a_model_with_weights_of_a_file_is_written_as_a_folder_of_its_factory(place):
    from sonde.weights.factory_folder import source_folder

    torch.save(net(3).state_dict(), place / "plain.pth")
    with source_folder(load("nets_with_files:make@plain.pth", device="cpu")) as folder:
        again = load(f"nets_with_files:make@{folder}", device="cpu").module
    x = torch.randn(4, 3)
    assert torch.equal(again(x), net(3)(x))
