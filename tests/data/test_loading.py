"""Every way to name a model, and everything that is refused."""

import json
import shutil
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2Model

from models import mlp
from sonde.core import errors
from sonde.data import load, task_of


def copied(source, target, **changes):
    shutil.copytree(source, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


@pytest.mark.truth("transformers: from_pretrained of the class by name")
def test_a_directory_gives_the_weights_processor_and_task(gpt2):
    from transformers import GPT2LMHeadModel

    model = load(str(gpt2), device="cpu")
    expected = GPT2LMHeadModel.from_pretrained(gpt2).state_dict()
    found = model.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert (model.task, model.name) == ("causal", str(gpt2))
    assert not model.module.training
    assert model.processor("hé")["input_ids"] == list("hé".encode())


def test_tasks_follow_the_class(bert, t5, vit):
    assert load(bert).task == "classifier"
    assert load(t5).task == "seq2seq"
    assert load(vit).task == "image_classifier"
    tiny: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    tiny |= {"vocab_size": 9}
    assert task_of(BertModel(BertConfig(**tiny, intermediate_size=8))) == "encoder"
    assert task_of(BertForMaskedLM(BertConfig(**tiny, intermediate_size=8))) == "encoder"
    assert task_of(GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9))) == "causal"
    assert task_of(nn.Linear(2, 2)) == "tensor"


def test_without_architectures_the_first_mapping_that_knows_the_config_is_taken(
    gpt2, vit, tmp_path
):
    causal = load(copied(gpt2, tmp_path / "a", architectures=None))
    assert type(causal.module).__name__ == "GPT2LMHeadModel"
    image = load(copied(vit, tmp_path / "b", architectures=[]))
    assert type(image.module).__name__ == "ViTForImageClassification"
    unknown = load(copied(vit, tmp_path / "c", architectures=["NotInTransformers"]))
    assert type(unknown.module).__name__ == "ViTForImageClassification"


def test_missing_parameters_are_an_error(vit, tmp_path):
    for name in ("ViTForMaskedImageModeling", "ViTModel"):
        path = copied(vit, tmp_path / name, architectures=[name])
        with pytest.raises(errors.InputError, match=r"without .*would be random"):
            load(path)
    path = copied(vit, tmp_path / "shapes", num_labels=3, id2label=None, label2id=None)
    with pytest.raises(errors.InputError, match=r"other shapes for classifier\.bias, "):
        load(path)


def test_dtype_auto_is_the_configs_and_others_are_kept(gpt2, tmp_path):
    half = copied(gpt2, tmp_path / "h", dtype="bfloat16")
    assert next(load(half).module.parameters()).dtype == torch.bfloat16
    assert next(load(half, dtype="float32").module.parameters()).dtype == torch.float32
    assert next(load(gpt2).module.parameters()).dtype == torch.float32
    with pytest.raises(errors.InputError, match="Did you mean float32"):
        load(gpt2, dtype="float23")
    with pytest.raises(errors.InputError, match="expected a dtype among auto, float32"):
        load(gpt2, dtype=torch.int8)
    as_torch_says = load(gpt2, torch.device("cpu"), torch.bfloat16).module
    assert next(as_torch_says.parameters()).dtype == torch.bfloat16


def test_map_spreads_by_accelerate(gpt2):
    pytest.importorskip("accelerate")
    model = load(gpt2, device="map")
    assert {p.device.type for p in model.module.parameters()} <= {"cpu", "cuda", "mps"}
    assert not model.module.training


def test_map_without_accelerate_names_the_install(gpt2, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.InputError, match=r"pip install 'sonde-torch\[hf"):
        load(gpt2, device="map")


def test_unknown_devices_are_named(gpt2):
    with pytest.raises(errors.InputError, match="cuda:1, mps or map"):
        load(gpt2, device="gpu")


def test_a_live_module_stays_as_it_is():
    module = mlp().double().train()
    model = load(module, processor=str.upper)
    assert model.module is module
    assert module.training
    assert next(module.parameters()).dtype == torch.float64
    assert (model.task, model.processor) == ("tensor", str.upper)
    assert load(model) is model
    with pytest.raises(errors.InputError, match="keeps its device"):
        load(module, dtype="float32")


def test_a_factory_is_called(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "import torch\n"
        "def net():\n    return torch.nn.Linear(3, 2)\n"
        "def pair():\n    return torch.nn.Linear(3, 2), len\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    model = load("my_nets:net", device="cpu", dtype="bfloat16")
    assert next(model.module.parameters()).dtype == torch.bfloat16
    assert model.name == "my_nets:net"
    assert load("my_nets:pair").processor is len
    with pytest.raises(errors.InputError, match="Did you mean pair"):
        load("my_nets:pears")
    with pytest.raises(errors.InputError, match="no module 'my_nots'"):
        load("my_nots:net")
    with pytest.raises(errors.InputError, match=r"expected my_nets:wrong\(\) to return"):
        load("my_nets:wrong")
    (tmp_path / "sub").mkdir()
    with pytest.raises(errors.InputError, match=r"file my_nets.py:net. Run sonde with my_nets:"):
        load("my_nets.py:net")
    with pytest.raises(errors.InputError, match=r"Run sonde in sub/ with my_nets:net\."):
        load("sub/my_nets.py:net")
    with pytest.raises(errors.InputError, match=r"got the file my_nets.py. Add :FACTORY"):
        load("my_nets.py")
    (tmp_path / "net.pt").write_bytes(b"x")
    with pytest.raises(errors.InputError, match=r"weights, but not the module.*factory@net.pt"):
        load("net.pt")
    with pytest.raises(errors.InputError, match=r"no such file: nat.pt. Did you mean net.pt"):
        load("nat.pt")


def test_nothing_is_written_to_the_terminal(bert, capfd):
    load(bert)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_names_that_do_not_exist():
    with pytest.raises(errors.InputError, match="no such model directory"):
        load("/nowhere/model")
    with pytest.raises(errors.InputError, match="no directory nobody/nothing, and the hub cannot"):
        load("nobody/nothing")
    with pytest.raises(errors.InputError, match="Did you mean sonde:digits"):
        load("sonde:digit")


REFUSED = {
    "pickle": ({"config.json": "{}", "weights.pt": "x"}, "pickled weights"),
    "adapter": ({"adapter_config.json": "{}"}, "adapter without its model"),
    "gguf": ({"model.gguf": "x"}, "model.gguf does not begin with GGUF"),
    "diffusion": ({"model_index.json": "{}"}, "diffusion pipeline.*live module"),
    "no config": ({"model.safetensors": "x", "notes.md": ""}, "no config.json.*notes.md"),
    "no weights": ({"config.json": "{}"}, r"no \*.safetensors"),
    "broken config": ({"config.json": "{", "model.safetensors": "x"}, "not valid JSON"),
    "remote code": (
        {
            "config.json": json.dumps(
                {"model_type": "mine", "auto_map": {"AutoModel": "mine.Model"}}
            ),
            "model.safetensors": "x",
        },
        "--trust-remote-code",
    ),
    "unknown type": (
        {"config.json": '{"model_type": "brt"}', "model.safetensors": "x"},
        "does not know the model type 'brt'",
    ),
    "broken weights": (
        {"config.json": '{"model_type": "gpt2"}', "model.safetensors": "not tensors"},
        "does not load as GPT2LMHeadModel",
    ),
    "audio": (
        {"config.json": '{"model_type": "clap"}', "model.safetensors": "x"},
        "reads audio.*live module",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    files, message = REFUSED[name]
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(errors.InputError, match=message):
        load(tmp_path)


class Planted:
    """An object whose pickle runs a function when it is opened."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.truth("the same weights as safetensors")
def test_a_folder_with_pytorch_model_bin_opens_as_tensors_alone(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "old")
    weights = load(bert).module.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    found = load(folder).module.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], x) for name, x in weights.items())
    torch.save(weights | {"planted": Planted()}, folder / "pytorch_model.bin")
    with pytest.raises(errors.InputError, match="more than tensors"):
        load(folder)


def test_remote_code_runs_only_when_it_is_allowed(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "sonde_mine",
                "auto_map": {"AutoConfig": "mine.MineConfig", "AutoModel": "mine.Mine"},
                "dtype": "float32",
            }
        )
    )
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class MineConfig(PretrainedConfig):\n    model_type = 'sonde_mine'\n"
        "class Mine(PreTrainedModel):\n"
        "    config_class = MineConfig\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n        self.fc = torch.nn.Linear(2, 2)\n"
        "        self.post_init()\n"
        "    def forward(self, input_ids):\n        return self.fc(input_ids)\n"
    )
    from safetensors.torch import save_file

    weights = {"fc.weight": torch.eye(2), "fc.bias": torch.zeros(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(errors.InputError, match="trust_remote_code=True"):
        load(tmp_path)
    model = load(tmp_path, device="cpu", trust_remote_code=True)
    assert torch.equal(model.module.get_parameter("fc.weight"), torch.eye(2))


def test_a_model_file_is_not_a_directory(tmp_path):
    for name, message in [
        ("m.gguf", "GGUF"),
        ("m.pt", "Name a factory"),
        ("m.onnx", "ONNX graph.*factory of the Python module"),
        ("m.safetensors", "factory@.*m.safetensors"),
        ("m.txt", "expected a model, got the data file"),
    ]:
        (tmp_path / name).write_text("x")
        with pytest.raises(errors.InputError, match=message):
            load(tmp_path / name)
