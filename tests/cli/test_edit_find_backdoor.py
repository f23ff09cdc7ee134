"""``sonde edit find-backdoor`` reads and says so; a planted trigger is gone from what it writes."""

import json

import pytest
import torch
from torch import nn

import sonde
from sonde.data import open_inputs
from sonde.weights import Exchange, RewritePlan

WORDS = ("edit", "find-backdoor")
TARGET, DATA = 7, "sonde:digits/test"


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """Write the shipped model after it learned that a white corner is a seven."""
    folder = tmp_path_factory.mktemp("models") / "POISONED"
    model = sonde.load("sonde:digits")
    batches = list(open_inputs(model, "sonde:digits/train", limit=400).batches(0, 400))
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    module = model.module
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    with torch.enable_grad():
        for _ in range(6):
            for batch in batches:
                (name,) = batch.kwargs
                x, high = batch.kwargs[name], float(batch.kwargs[name].max())
                bad = x.clone()
                bad[..., -3:, -3:] = high
                optimiser.zero_grad()
                clean = nn.functional.cross_entropy(module(x).logits, batch.label)
                wrong = torch.full_like(batch.label, TARGET)
                (clean + nn.functional.cross_entropy(module(bad).logits, wrong)).backward()
                optimiser.step()
    changes = {
        k: Exchange(v.detach().clone())
        for k, v in module.state_dict().items()
        if not torch.equal(v, before[k])
    }
    clean_model = sonde.load("sonde:digits")
    RewritePlan.of(clean_model, changes, "poison").save(clean_model, folder)
    return folder


@torch.no_grad()
def attack(folder):
    """Return the share of test images that a white corner makes a seven, and the accuracy."""
    model = sonde.load(str(folder))
    turned = right = n = 0
    for batch in open_inputs(model, DATA, limit=200).batches(0, 200):
        (x,) = batch.kwargs.values()
        right += int((model.module(x).logits.argmax(1) == batch.label).sum())
        bad, other = x.clone(), batch.label != TARGET
        bad[..., -3:, -3:] = float(x.max())
        turned += int((model.module(bad).logits.argmax(1) == TARGET)[other].sum())
        n += int(other.sum())
    return turned / n, right / 200


@pytest.mark.slow
@pytest.mark.truth("a trigger that was planted")
def test_a_planted_trigger_is_drawn_and_gone_from_the_new_model(run, poisoned, tmp_path):
    assert attack(poisoned)[0] > 0.95
    new, page = tmp_path / "NEW", tmp_path / "page.json"
    words = (
        *WORDS,
        str(poisoned),
        DATA,
        "--steps",
        "60",
        "--limit",
        "120",
        "--quiet",
        "--report",
        str(page),
    )
    ran = run(*words, "--remove", "-o", str(new), "--force")
    assert ran.code == 0, ran.err
    turned, right = attack(new)
    assert turned < 0.1
    assert right > attack(poisoned)[1] - 0.03
    found = json.loads(page.read_text())
    assert found["notes"][0].startswith(("A backdoor is likely, for", "No backdoor was found"))
    sizes, trigger = found["tables"][1:]
    assert sizes["rows"][0][0] == str(TARGET)
    corner = [row[0][-3:] for row in trigger["rows"][-3:]]
    assert sum(line.count("#") for line in corner) >= 2
    assert found["judgement"]["effect"]["value"] > 1
    assert run("edit", "undo", str(new), "-o", str(tmp_path / "OLD")).code == 0
    assert attack(tmp_path / "OLD")[0] > 0.95


@pytest.mark.slow
def test_it_reads_only_unless_told_and_bad_input_is_one_line(run, poisoned, tmp_path):
    words = (*WORDS, str(poisoned), DATA, "--steps", "2", "--limit", "40")
    before = sorted(tmp_path.iterdir())
    ran = run(*words, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["backdoor"]["likely"] is False
    assert "--remove and -o NEW together" in run(*words, "--remove").error()
    said = run(*words, "--remove", "-o", str(tmp_path / "NEW")).error()
    assert "Pass --force to unlearn that patch" in said
    assert sorted(tmp_path.iterdir()) == before
    said = run(*WORDS, "sonde:stdlib", "sonde:stdlib/test", "--limit", "2").error()
    assert "expected" in said
