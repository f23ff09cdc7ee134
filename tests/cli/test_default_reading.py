"""Detectors fitted by their bare words read what their definitions speak of."""

import pytest
import torch

import sonde

DIGITS = ("sonde:digits", "sonde:digits/train", "--limit", 60)
TRAINED = {
    "fod": "fod(passes=2,width=16,heads=2,layers=1,batch=8)",
    "simple_net": "simple_net(passes=2,steps=4,hidden=16)",
}


def scored(run, probe, limit=4):
    ran = run("score", probe, "sonde:digits", "sonde:digits/test", "--limit", limit, "--each",
              "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    return ran.json()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_patches_of_images_are_read_where_a_method_asks_for_them(run, tmp_path, name):
    probe = tmp_path / "probe.sonde"
    ran = run("fit", TRAINED[name], *DIGITS, "-o", probe)
    assert ran.code == 0, ran.err
    found = scored(run, probe)
    assert len(found) == 4 * 4
    assert len({row["position"] for row in found}) > 1
    assert all(row["score"] != 0 for row in found)
    line = run("fit", TRAINED[name], *DIGITS, "--reducer", "cls", "-o", probe).error()
    assert "expected rows of the reducer 'patches', got cls" in line


@pytest.mark.slow
@pytest.mark.truth("plain torch: the states that enter the classifier, clipped, and its logits")
def test_react_reads_what_the_classifier_takes_in(run, tmp_path):
    probe = tmp_path / "probe.sonde"
    assert run("fit", "react", *DIGITS, "--calibrate", 0, "-o", probe).code == 0
    model = sonde.load("sonde:digits")
    head = model.module.get_submodule("classifier")
    assert isinstance(head, torch.nn.Linear)
    taken: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: taken.append(args[0].detach()))
    for part in ("train", "test"):
        list(sonde.read(model, f"sonde:digits/{part}", limit=60 if part == "train" else 4))
    hook.remove()
    x = torch.cat(taken)[-64:]
    clipped = x[60:].clamp(max=float(x[:60].quantile(0.9)))
    want = -(clipped @ head.weight.T + head.bias).logsumexp(1)
    found = scored(run, probe)
    assert {row["site"] for row in found} == {"classifier:in"}
    assert [row["score"] for row in found] == pytest.approx(want.tolist(), rel=1e-2)


@pytest.mark.slow
def test_the_gradient_that_a_measure_asks_for_is_read(run, tmp_path):
    probe = tmp_path / "probe.sonde"
    word = "gradient_signal_to_noise"
    ran = run("fit", word, *DIGITS, "--sites", "classifier", "-o", probe, "--json")
    assert ran.code == 0, ran.err
    (row,) = ran.json()["results"]
    stream = sonde.read("sonde:digits", DIGITS[1], limit=60, sites="classifier", objective="nll")
    grad = torch.cat([batch.grad["classifier:out"] for batch in stream]).double()
    assert row["value"] == pytest.approx(float(grad.mean(0).norm() / grad.var(0).sum().sqrt()))
    line = run("fit", word, *DIGITS, "--sites", "classifier:grad", "-o", probe).error()
    assert "name sites without the port grad" in line
    line = run("fit", word, *DIGITS, "--objective", "max_logit", "-o", probe).error()
    assert "expects a stream that was read with objective='nll', got 'max_logit'" in line


@pytest.mark.slow
def test_methods_that_want_other_readings_are_fitted_together(run, tmp_path):
    probe = tmp_path / "probe.sonde"
    ran = run("fit", "vim,mahalanobis,padim", *DIGITS, "-o", probe, "--json")
    assert ran.code == 0, ran.err
    places = {(row["method"], row["site"]) for row in ran.json()["results"]}
    blocks = [f"vit.layers.{i}:out" for i in range(4)]
    assert places == {
        ("vim", "classifier:in"),
        ("mahalanobis", "classifier:in"),
        *((method, block) for method in ("mahalanobis", "padim") for block in blocks),
    }
    line = run("fit", "vim", *DIGITS, "--sites", "blocks", "-o", probe).error()
    assert "ViM: expected the input rows of the model's final linear layer" in line


@pytest.mark.slow
def test_rows_on_disk_are_taken_with_the_sites_that_they_have(run, tmp_path):
    acts = tmp_path / "acts"
    assert run("read", *DIGITS, "--sites", "blocks", "logits:in", "-o", acts).code == 0
    ran = run("fit", "vim,mahalanobis", acts, "-o", tmp_path / "probe.sonde", "--json")
    assert ran.code == 0, ran.err
    found = [row["site"] for row in ran.json()["results"] if row["method"] == "vim"]
    assert found == ["classifier:in"]


@pytest.mark.slow
def test_nac_is_fitted_beside_detectors_of_the_last_layer_and_at_their_place(run, tmp_path):
    ran = run("fit", "nac,react", *DIGITS, "-o", tmp_path / "probe.sonde", "--json")
    assert ran.code == 0, ran.err
    found = [row["site"] for row in ran.json()["results"] if row["method"] == "nac"]
    assert found == [*(f"vit.layers.{i}:out" for i in range(4)), "classifier:in"]
    words = ["--sites", "logits:in", "-o", tmp_path / "one.sonde"]
    assert run("fit", "nac", *DIGITS, *words).code == 0
