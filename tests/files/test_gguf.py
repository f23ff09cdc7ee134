"""Control vectors as GGUF."""

import struct

import numpy as np
import pytest
import torch

from sonde.core import InputError
from sonde.files.gguf import write_control_vector


def read(raw):
    """Read the file by the published layout: head, facts, entries, then data at multiples of 32."""
    at = 0

    def take(form):
        nonlocal at
        found = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return found[0] if len(found) == 1 else found

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return raw[at - n : at].decode()

    assert raw[:4] == b"GGUF"
    at = 4
    version, n_tensors, n_facts = take("IQQ")
    facts = {}
    for _ in range(n_facts):
        key, kind = text(), take("I")
        facts[key] = text() if kind == 8 else take("I")
    entries = [(text(), take("I"), take("Q"), take("I"), take("Q")) for _ in range(n_tensors)]
    start = (at + 31) // 32 * 32
    tensors = {
        name: np.frombuffer(raw, "<f4", size, start + offset)
        for name, _, size, _, offset in entries
    }
    return version, facts, entries, tensors


@pytest.mark.truth("the published layout of GGUF 3, read by hand")
def test_each_block_after_the_first_has_its_vector(tmp_path):
    generator = torch.Generator().manual_seed(0)
    vectors = {n: torch.randn(11, generator=generator, dtype=torch.float64) for n in (2, 0, 1)}
    write_control_vector(tmp_path / "v.gguf", "llama", vectors)
    raw = (tmp_path / "v.gguf").read_bytes()
    version, facts, entries, tensors = read(raw)
    assert version == 3
    assert facts == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 2,
    }
    assert [(n, dims, kind, offset % 32) for n, dims, _, kind, offset in entries] == [
        ("direction.1", 1, 0, 0),
        ("direction.2", 1, 0, 0),
    ]
    for number in (1, 2):
        np.testing.assert_array_equal(
            tensors[f"direction.{number}"], vectors[number].float().numpy()
        )
    assert len(raw) % 32 == 0


def test_what_no_reader_could_use_is_refused(tmp_path):
    with pytest.raises(InputError, match="for the blocks after the first block, got none"):
        write_control_vector(tmp_path / "v.gguf", "llama", {0: torch.ones(2)})
    with pytest.raises(InputError, match=r"not finite|finite vectors"):
        write_control_vector(tmp_path / "v.gguf", "llama", {1: torch.tensor([float("nan")])})
    assert not list(tmp_path.iterdir())
