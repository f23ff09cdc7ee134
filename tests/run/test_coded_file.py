"""Files in the form of ``sonde encode``: what comes back, and what is refused."""

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import sonde
from sonde.compress import SequenceCoder
from sonde.core import InputError, Model, StateError
from sonde.run.coding.coded_file import contents_of, file_of, read_contents, write_contents
from sonde.run.coding.sizes import model_bytes, plain_sizes
from sonde.testing import causal_model


def words_model(normalizer=None):
    """A model of 32 tokens: letters, and two pairs that are merged."""
    letters = [
        pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(c)[0][0]
        for c in "abcdefgh \n"
    ]
    names = [*letters, "ab", "cd"]
    made = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, [("a", "b"), ("c", "d")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    module, tokenizer = causal_model(), PreTrainedTokenizerFast(tokenizer_object=made)
    return Model(module, processor=tokenizer, config=module.config, task="causal")


def round_trip(raw, model, **fields):
    coder = SequenceCoder(model, rows=4, **fields)
    contents = contents_of(raw, model)
    return contents, read_contents(write_contents(contents, coder), coder)


@pytest.mark.slow
def test_bytes_of_any_file_come_back():
    model = sonde.load("sonde:stdlib")
    raw = bytes(range(256)) + b"def f(x)"
    contents, back = round_trip(raw, model, window=40)
    assert contents.kind == "bytes"
    assert file_of(back, model) == raw


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_pixels_of_a_picture_come_back(mode):
    n_channels = len(mode)
    draw = np.random.default_rng(3).integers(0, 256, (3, 5, n_channels), dtype=np.uint8)
    picture = Image.fromarray(draw if n_channels > 1 else draw[:, :, 0], mode)
    out = io.BytesIO()
    picture.save(out, "PNG")
    model = sonde.load("sonde:stdlib")
    contents, back = round_trip(out.getvalue(), model, window=15)
    assert (contents.kind, contents.width, contents.height) == ("picture", 5, 3)
    with Image.open(io.BytesIO(file_of(back, model))) as found:
        assert found.mode == mode
        assert np.array_equal(np.asarray(found).reshape(draw.shape), draw)
    sizes = plain_sizes(b"", contents)
    assert sizes["PNG"] < 200
    assert sizes["zlib"] == len(zlib.compress(draw.tobytes(), 9))  # of the pixels alone


def test_a_text_is_coded_by_the_tokens_of_its_tokenizer():
    model = words_model()
    contents, back = round_trip(b"abcd fed\ncab ", model)
    assert contents.kind == "text"
    assert len(contents.ids) < 13  # ab and cd are one token each
    assert file_of(back, model) == b"abcd fed\ncab "


@pytest.mark.parametrize(
    ("raw", "normalizer", "message"),
    [
        (b"abAB", normalizers.Lowercase(), "does not give the original text"),
        (b"abz", None, "does not give the original text"),
        (b"ab\xff", None, "not a UTF-8 text"),
    ],
)
def test_what_the_tokens_cannot_give_back_is_refused(raw, normalizer, message):
    with pytest.raises(InputError, match=message):
        contents_of(raw, words_model(normalizer))


def test_every_flipped_bit_is_refused():
    model = sonde.load("sonde:stdlib")
    coder = SequenceCoder(model)
    coded = write_contents(contents_of(b"import os", model), coder)
    for at in range(len(coded)):
        broken = bytearray(coded)
        broken[at] ^= 1 << at % 8
        with pytest.raises(StateError):
            read_contents(bytes(broken), coder)
    with pytest.raises(StateError):
        read_contents(coded[:-1], coder)


@pytest.mark.truth("a count by hand")
def test_a_tied_weight_counts_once():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert model_bytes(net) == 4 * (9 + 3)
