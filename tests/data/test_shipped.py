"""The shipped models and their data."""

import subprocess
import sys
import sysconfig
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from narrow import expect, present
from sonde.core import errors
from sonde.core.hashing import base_hashes, draws
from sonde.data import load, open_inputs, shipped


@pytest.fixture(scope="module")
def digits():
    return load("sonde:digits", device="cpu")


@pytest.fixture(scope="module")
def stdlib():
    return load("sonde:stdlib", device="cpu")


@pytest.mark.slow
@pytest.mark.truth("scikit-learn's digits, counted by hand")
def test_the_digits_are_split_within_their_class(digits):
    found = expect(Bunch, load_digits())
    rank = [int((found.target[:i] == y).sum()) for i, y in enumerate(found.target)]
    held = np.array([str(r)[-1] in "258" for r in rank])
    for split, mine in (("test", held), ("train", ~held)):
        inputs = open_inputs(digits, f"sonde:digits/{split}")
        batches = list(inputs.batches(0, len(inputs)))
        labels = torch.cat([b.label for b in batches]).tolist()
        assert labels == found.target[mine].tolist()
        pixels = torch.cat([b.kwargs["pixel_values"] for b in batches])
        expected = torch.from_numpy(found.images[mine] / 16).float()[:, None]
        torch.testing.assert_close(pixels * 0.5 + 0.5, expected, rtol=0, atol=0.5 / 255 + 1e-6)
        assert len(labels) == {"test": 537, "train": 1260}[split]
    assert len(open_inputs(digits, "sonde:digits")) == 537


def test_the_digits_model_is_right_on_held_out_digits(digits):
    inputs = open_inputs(digits, "sonde:digits/test")
    right = 0
    with torch.no_grad():
        for batch in inputs.batches(0, len(inputs)):
            right += int((digits.module(**batch.kwargs).logits.argmax(1) == batch.label).sum())
    assert right / 537 >= 0.97
    card = (shipped.model_directory("sonde:digits") / "README.md").read_text()
    assert f"Test accuracy: {right / 537:.4f}" in card
    assert inputs.own_labels
    assert digits.config.dtype == torch.float32


def test_a_users_own_picture_goes_through_the_same_path(digits, tmp_path):
    from PIL import Image

    found = expect(Bunch, load_digits())
    for i in range(20):
        folder = tmp_path / str(found.target[i])
        folder.mkdir(exist_ok=True)
        grey = np.rint(found.images[i] * 255 / 16).astype(np.uint8)
        Image.fromarray(grey).convert("RGB").save(folder / f"{i}.png")
    inputs = open_inputs(digits, tmp_path)
    (batch,) = inputs.batches(0, 20)
    with torch.no_grad():
        right = (digits.module(**batch.kwargs).logits.argmax(1) == batch.label).sum()
    assert int(right) >= 18


@pytest.mark.truth("bytes of the text")
def test_a_token_of_stdlib_is_a_byte(stdlib):
    for text in ("import os\n", "\ttab  two\r\n", "naïve 中文 😀\x00\x7f", ""):
        assert stdlib.processor(text)["input_ids"] == list(text.encode())
        assert stdlib.processor.decode(list(text.encode())) == text
    assert stdlib.processor.all_special_ids == []
    assert stdlib.task == "causal"
    assert {p.dtype for p in stdlib.module.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.truth("the files of the running Python, cut and hashed by hand")
def test_stdlib_pieces_are_those_of_smallest_draw(stdlib):
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "__pycache__"}
    pieces = {}
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root)
        word = blake2b(name.as_posix().encode(), digest_size=8).digest()
        if left_out & set(name.parts) or int.from_bytes(word, "little") % 10:
            continue
        content = path.read_bytes()
        key = blake2b(content, digest_size=16).digest()
        base = base_hashes([key], "sample", 0)
        for first in range(0, len(content), 256):
            draw = draws(base, np.array([first]), np.array([0])).numpy().view(np.uint64)[0]
            pieces[name.as_posix(), first] = (int(draw), content[first : first + 256], key)
    everything = open_inputs(stdlib, "sonde:stdlib/test-all")
    assert len(everything) == len(pieces)
    chosen = sorted(pieces, key=lambda p: pieces[p][0])[:512]
    inputs = open_inputs(stdlib, "sonde:stdlib/test")
    found = {}
    for batch in inputs.batches(0, 512):
        for row in range(len(batch)):
            group, first = batch.group_keys[row].decode(), int(present(batch.first)[row])
            ids = batch.kwargs["input_ids"][row][present(batch.mask)[row]].tolist()
            found[group, first] = (bytes(ids), batch.keys[row])
    assert found == {p: pieces[p][1:] for p in chosen}
    assert inputs.grouped


def test_another_seed_gives_other_pieces_and_no_split_means_test(stdlib):
    first, second = (open_inputs(stdlib, "sonde:stdlib", seed=s) for s in (0, 1))
    assert len(first) == len(second) == 512
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == open_inputs(stdlib, "sonde:stdlib/test").fingerprint


def test_names_of_shipped_data_are_checked(stdlib):
    with pytest.raises(errors.InputError, match="Did you mean sonde:stdlib/train"):
        open_inputs(stdlib, "sonde:stdlib/trane")
    with pytest.raises(errors.InputError, match="no shipped data 'sonde:nothing'"):
        open_inputs(stdlib, "sonde:nothing")


def test_a_python_without_sources_is_named(stdlib, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "library_root", lambda: tmp_path)
    with pytest.raises(errors.InputError, match="has no sources of its standard library"):
        open_inputs(stdlib, "sonde:stdlib/test")


def test_both_models_are_small():
    folder = shipped.model_directory("sonde:digits").parent
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= 12e6
    for name in ("digits", "stdlib"):
        card = (folder / name / "README.md").read_text()
        assert "Licence of the weights: Apache-2.0" in card


@pytest.mark.slow
def test_a_fit_imports_neither_scikit_learn_nor_the_distributions_of_scipy():
    code = (
        "import sys, sonde.run.fitting.fit, sonde.cli.commands; from sonde.data import shipped; "
        "shipped.load_digits(); found = {'sklearn', 'scipy.stats'} & set(sys.modules); "
        "sys.exit(str(found) if found else 0)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stderr
