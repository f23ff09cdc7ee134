"""Folders that only sonde can open, opened by transformers alone in a process of its own."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import sonde
from models import llama
from sonde.compress import RTN, PruneWeights
from sonde.layers.saving import layer_files
from sonde.weights import RewritePlan, save_edited, unpacked

OPEN = """
import json, sys
from transformers import AutoModelForCausalLM, LlamaForCausalLM
said = []
for folder in sys.argv[1:]:
    for kind in (AutoModelForCausalLM, LlamaForCausalLM):
        try:
            kind.from_pretrained(folder)
            said.append("opened")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
assert "sonde" not in sys.modules
print(json.dumps(said))
"""


def opened_alone(*folders):
    ran = subprocess.run(
        [sys.executable, "-c", OPEN, *map(str, folders)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
def test_transformers_alone_refuses_what_it_would_fill_at_random(tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(llama().config).eval().save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    plans = {
        "packed": RTN(bits=8).plan(model),
        "zeros": PruneWeights(0.5).plan(model),
        "fewer": RewritePlan.shaped(model, {}, blocks={"model.layers": (1,)}),
    }
    for name, plan in plans.items():
        save_edited(model, plan, tmp_path / name)
    width = model.config.hidden_size
    files = layer_files(sonde.inserted(model, {"model.layers.1": sonde.layers.Adapter(width, 2)}))
    save_edited(model, RewritePlan.of(model, {}), tmp_path / "inserted", layers=files)
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    packed.save_pretrained(tmp_path / "copy")
    unpacked(packed).save_pretrained(tmp_path / "plain")
    AutoModelForCausalLM.from_pretrained(tmp_path / "zeros").save_pretrained(tmp_path / "plain2")
    only = [tmp_path / name for name in (*plans, "inserted", "copy")]
    said = opened_alone(*only, tmp_path / "plain", tmp_path / "plain2", tmp_path / "old")
    assert said[-6:] == ["opened"] * 6
    assert len(said) == 16
    assert [words for words in said[:-6] if "Run `import sonde` before from" not in words] == []
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    del config["quantization_config"]  # the advice that transformers logs first
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    assert all("Run `import sonde`" in words for words in opened_alone(tmp_path / "packed"))
    state = packed.state_dict()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").state_dict()
    assert all(torch.equal(again[name], x) for name, x in state.items())
