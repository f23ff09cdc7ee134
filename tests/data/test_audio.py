"""Recordings: files, arrays and data sets give what the model gets when it is called by hand."""

import io
import shutil

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

import sonde
from sonde.core.errors import InputError
from sonde.data import load, open_inputs

RATE = 16_000


def tone(pitch: float, seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(time))
    return (0.5 * np.sin(2 * np.pi * pitch * time) + 0.02 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 8), num_labels=2,  # pyright: ignore[reportCallIssue]
        num_feat_extract_layers=2, num_conv_pos_embeddings=8,  # pyright: ignore[reportCallIssue]
        num_conv_pos_embedding_groups=2, classifier_proj_size=8,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("wav2vec2")
    Wav2Vec2ForSequenceClassification(config).save_pretrained(place)
    Wav2Vec2FeatureExtractor().save_pretrained(place)
    return load(place)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, vocab_size=50,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, max_target_positions=16,
    )  # fmt: skip
    place = tmp_path_factory.mktemp("whisper")
    WhisperForConditionalGeneration(config).save_pretrained(place)
    WhisperFeatureExtractor().save_pretrained(place)
    return load(place)


@pytest.fixture
def folder(tmp_path):
    """Two pitches: stereo FLAC at the model's rate, mono WAV at half of it, of several lengths."""
    for i, (name, pitch) in enumerate((("low", 200.0), ("high", 1500.0))):
        (tmp_path / name).mkdir()
        left, right = tone(pitch, 0.5, seed=i), tone(pitch, 0.5, seed=i + 9)
        soundfile.write(tmp_path / name / "a.flac", np.stack([left, right], 1), RATE)
        soundfile.write(tmp_path / name / "b.wav", tone(pitch, 0.7, RATE // 2, i), RATE // 2)
    return tmp_path


def by_hand(model, samples: np.ndarray) -> torch.Tensor:
    """Return the mean state behind the last block for samples at the model's rate."""
    made = model.processor([samples], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        return model.module(**made, output_hidden_states=True).hidden_states[1].mean(1)[0]


@pytest.mark.truth("the model called by hand on what soundfile and scipy give")
def test_a_folder_gives_the_states_of_each_recording_alone(classifier, folder):
    stream = sonde.read(classifier, folder, sites="wav2vec2.encoder.layers.0", reducer="mean")
    assert stream.label_names == ("high", "low")
    found, labels = {}, {}
    for batch in stream:
        for i, key in enumerate(batch.order.tolist()):
            found[key] = next(iter(batch.rows.values()))[i]
            labels[key] = int(batch.label[i])
    files = [p / n for p in (folder / "high", folder / "low") for n in ("a.flac", "b.wav")]
    assert labels == {0: 0, 1: 0, 2: 1, 3: 1}
    for i, file in enumerate(files):
        values, rate = soundfile.read(file, dtype="float32", always_2d=True)
        samples = values.mean(1)
        samples = samples if rate == RATE else resample_poly(samples, 2, 1).astype(np.float32)
        assert torch.allclose(found[i], by_hand(classifier, samples), atol=1e-5)


@pytest.mark.slow
def test_a_fixed_length_takes_all_in_one_batch_and_tells_what_is_cut(whisper, folder):
    soundfile.write(folder / "low" / "long.wav", tone(200.0, 31.0), RATE)
    inputs = open_inputs(whisper, folder)
    assert any("1 of 5 recordings was cut off at the length" in note for note in inputs.notes)
    (batch,) = inputs.batches(0, 5)
    assert batch.args == ()
    assert batch.kwargs["input_features"].shape == (5, 80, 3000)
    assert batch.kwargs["decoder_input_ids"].tolist() == [[3]] * 5
    keys = {site.key for site in sonde.read(whisper, folder).schema}
    assert keys == {
        f"model.{part}.layers.{i}:out" for part in ("encoder", "decoder") for i in (0, 1)
    }


def test_arrays_bytes_and_data_sets_are_the_files(classifier):
    import datasets

    samples, file = tone(300.0, 0.25), io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    rows = [
        {"audio": samples},
        {"audio": {"array": tone(300.0, 0.25, 48_000), "sampling_rate": 48_000}},
        {"audio": {"bytes": file.getvalue(), "path": None}},
        {"audio": torch.from_numpy(samples)},
    ]
    (batch,) = open_inputs(classifier, rows).batches(0, 4)
    x = batch.kwargs["input_values"]
    assert x.shape == (4, len(samples))
    assert torch.equal(x[0], x[2])
    assert torch.equal(x[0], x[3])
    assert torch.corrcoef(x[:2])[0, 1] > 0.99
    found = datasets.Dataset.from_dict({"audio": [{"bytes": file.getvalue(), "path": None}]})
    found = found.cast_column("audio", datasets.Audio())
    (one,) = open_inputs(classifier, found).batches(0, 1)
    assert torch.equal(one.kwargs["input_values"][0], x[0])


def test_whole_numbers_are_shares_of_their_range(classifier):
    samples = tone(300.0, 0.25)
    rows = [{"audio": samples}, {"audio": (samples * 32768).round().astype(np.int16)}]
    (batch,) = open_inputs(classifier, rows).batches(0, 2)
    x = batch.kwargs["input_values"]
    assert torch.allclose(x[0], x[1], atol=1e-3)


def test_what_is_no_recording_is_named(classifier, folder):
    (folder / "low" / "a.flac").write_bytes(b"fLaC" + bytes(50))
    with pytest.raises(InputError, match=r"a\.flac: the recording cannot be decoded"):
        list(open_inputs(classifier, folder).batches(0, 4))
    (folder / "low" / "photo.png").write_bytes(b"x")
    with pytest.raises(InputError, match="holds 1 image and 4 recordings"):
        open_inputs(classifier, folder)
    with pytest.raises(InputError, match="the recording is empty"):
        list(open_inputs(classifier, [{"audio": np.zeros(0, np.float32)}]).batches(0, 1))
    with pytest.raises(InputError, match=r"reads recordings, but .* the columns words, number"):
        open_inputs(classifier, [{"words": "a b", "number": 3}])


def test_a_checkpoint_without_its_feature_extractor_says_so(classifier, folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("bare")
    shutil.copytree(classifier.name, place, dirs_exist_ok=True)
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"how to preprocess recordings.*processor="):
        open_inputs(load(place), folder)
    given = load(place, processor=Wav2Vec2FeatureExtractor())
    assert len(open_inputs(given, folder)) == 4
