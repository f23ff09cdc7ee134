"""Images: orientation, transparency, channels, recipes, and files that are broken or hostile."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from image_recipe import RECIPE
from models import cnn
from sonde.core import errors
from sonde.core.hashing import bytes_key, tensor_key
from sonde.data import PillowProcessor, load, open_inputs
from sonde.data import images as images_module
from sonde.data.images import decode, picture_columns, with_channels


def noise(height, width, channels=3, seed=0):
    x = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(x if channels > 1 else x[:, :, 0])


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name, seed in [("dog/b.png", 1), ("cat/a.png", 2), ("cat/deep/c.png", 3)]:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(9, 12, seed=seed).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"x")
    return tmp_path / "photos"


@pytest.mark.truth("transformers image processor (PIL backend), called directly")
def test_an_image_folder(vit, folder):
    model = load(vit)
    inputs = open_inputs(model, folder)
    (batch,) = inputs.batches(0, 3)
    files = [folder / n for n in ("cat/a.png", "cat/deep/c.png", "dog/b.png")]
    assert batch.ids == [bytes_key(f.read_bytes()).hex() for f in files]
    assert batch.label.tolist() == [0, 0, 1]
    assert (inputs.label_names, inputs.own_labels) == (("cat", "dog"), True)
    pictures = [Image.open(f) for f in files]
    expected = model.processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch.kwargs["pixel_values"], expected)
    assert batch.grid == (4, 4)
    assert batch.columns["size"].tolist() == [f.stat().st_size for f in files]
    grey = [np.asarray(p.convert("L")).mean() / 255 for p in pictures]
    np.testing.assert_allclose(batch.columns["brightness"].numpy(), grey, rtol=1e-6)
    spread = [np.asarray(p.convert("L")).std() / 255 for p in pictures]
    np.testing.assert_allclose(batch.columns["contrast"].numpy(), spread, rtol=1e-6)
    assert model.module(**batch.kwargs).logits.shape == (3, 2)


@pytest.mark.truth("closed form: 1 for independent pixels, the root of 2 for a checkerboard")
def test_sharpness_is_that_of_noise_without_its_contrast():
    drawn = np.random.default_rng(0).normal(128, 30, (90, 70)).clip(0, 255)
    board = (np.indices((6, 8)).sum(0) % 2) * 200.0
    ramp = np.arange(12.0)[None].repeat(5, 0)  # steps of 1 along one axis of two
    flat = np.full((4, 4), 7.0)
    images = [Image.fromarray(x.astype(np.uint8)) for x in (drawn, drawn / 4, board, ramp, flat)]
    noise, faint, checked, even, none = picture_columns(images)["sharpness"].tolist()
    assert (noise, faint) == pytest.approx((1.0, 1.0), abs=0.02)
    assert (checked, none) == pytest.approx((2**0.5, 0.0))
    assert even == pytest.approx(0.5 / ramp.std())


RECIPES = {
    "vit": RECIPE,
    "edge and crop": RECIPE
    | {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 10},
        "do_center_crop": True,
        "crop_size": {"height": 8, "width": 8},
        "resample": 3,
    },
    "crop of a small image": RECIPE
    | {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": False,
        "do_center_crop": True,
        "crop_size": {"height": 15, "width": 10},
    },
    "share": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 12},
        "crop_pct": 0.875,
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    },
    "share of a large image": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 384},
        "crop_pct": 0.875,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    },
    "no scaling": RECIPE | {"do_rescale": False, "do_normalize": False},
}


@pytest.mark.truth("transformers image processors, PIL backend")
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", [(20, 13), (13, 20), (12, 12)])
def test_the_pillow_recipe_equals_the_processor(name, shape, tmp_path):
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(RECIPES[name]))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = noise(*shape)
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    found = PillowProcessor.from_config(processor.to_dict())([image])
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=2e-6)


def test_grey_models_get_one_channel(tmp_path, vit):
    model = load(vit)
    model.config.num_channels = 1
    grey = replace(model, processor=PillowProcessor((8, 8), mean=(0.5,), std=(0.5,)))
    (batch,) = open_inputs(grey, [noise(8, 8)]).batches(0, 1)
    assert batch.kwargs["pixel_values"].shape == (1, 1, 8, 8)
    model.config.num_channels = 4
    with pytest.raises(errors.InputError, match="reads 4 channels"):
        open_inputs(grey, [noise(8, 8)])


@pytest.mark.truth("numpy: turning and blending by hand")
def test_orientation_transparency_and_modes():
    picture = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(picture, exif=exif))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(picture), -1))

    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert np.asarray(with_channels(clear, 3)).tolist() == [[[255] * 3] * 2] * 2
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert abs(int(np.asarray(with_channels(half, 3))[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9] * 256)
    palette.info["transparency"] = 0
    assert np.asarray(with_channels(palette, 1)).tolist() == [[255]]

    assert with_channels(Image.new("CMYK", (1, 1)), 3).mode == "RGB"
    assert with_channels(Image.new("1", (1, 1)), 1).mode == "L"


@pytest.mark.truth("65,535 is white in 16 bits, 1.0 in floating point: by hand")
@pytest.mark.parametrize("brightest", [100, 255, 256, 65535])
def test_white_does_not_depend_on_the_brightest_pixel(brightest):
    sixteen = np.array([[0, brightest]], dtype=np.uint16)
    expected = [[0, round(brightest / 257)]]
    for kind in ("PNG", "TIFF"):
        found = decode(encoded(Image.fromarray(sixteen), kind))
        assert np.asarray(with_channels(found, 1)).tolist() == expected
    grey_map = b"P5 2 1 65535\n" + sixteen.astype(">u2").tobytes()
    assert np.asarray(with_channels(decode(grey_map), 1)).tolist() == expected
    floats = Image.fromarray(sixteen.astype(np.float32) / 65535)
    assert np.asarray(with_channels(floats, 1)).tolist() == expected


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (
            np.array([[0, 200]], dtype=np.int32),
            "whole numbers of 32 bits, for which the value of white",
        ),
        (np.array([[0, 200]], dtype=np.float32), "pixels from 0 to 1, got 0 to 200. Divide"),
        (np.array([[0, np.nan]], dtype=np.float32), "finite pixels, got NaN or infinity in 1 of 2"),
        (np.array([[-0.1, 1]], dtype=np.float32), "pixels from 0 to 1, got -0.1 to 1"),
    ],
)
def test_pixels_without_a_known_white_are_refused(vit, tmp_path, pixels, said):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(errors.InputError, match=rf"a.tif: .*{said}.*--skip-bad"):
        list(open_inputs(load(vit), tmp_path).batches(0, 1))


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "P",
        "LA",
        "PA",
        "La",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "HSV",
        "LAB",
        "I;16",
        "I;16B",
        "I;16L",
        "F",
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_pillow_is_read(mode, channels):
    image = with_channels(Image.new(mode, (2, 3)), channels)
    assert (image.mode, image.size) == ({1: "L", 3: "RGB"}[channels], (2, 3))


def test_broken_and_missing_images_are_named_or_counted(vit, folder, tmp_path):
    model = load(vit)
    whole = (folder / "cat/a.png").read_bytes()
    (folder / "dog/cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog/words.png").write_text("not an image")
    for name, message in [("dog/cut.png", "cut off"), ("dog/words.png", "not an image")]:
        other = folder / ("dog/words.png" if name == "dog/cut.png" else "dog/cut.png")
        kept = other.read_bytes()
        other.unlink()
        with pytest.raises(errors.InputError, match=rf"{name}: .*{message}.*--skip-bad"):
            list(open_inputs(model, folder).batches(0, 10))
        other.write_bytes(kept)
    inputs = open_inputs(model, folder, skip_bad=True, batch_size=2)
    for _ in range(2):
        orders = [b.order.tolist() for b in inputs.batches(0, len(inputs))]
        assert orders == [[0, 1], [2]]
        assert inputs.n_skipped == 2
    table = tmp_path / "t.jsonl"
    table.write_text('{"image": "photos/cat/a.png"}\n{"image": "photos/gone.png"}\n')
    with pytest.raises(errors.InputError, match=r"t.jsonl line 2: no such image file"):
        open_inputs(model, table)
    assert len(open_inputs(model, table, skip_bad=True)) == 1


def test_images_with_too_many_pixels_are_refused(monkeypatch):
    monkeypatch.setattr(images_module, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(errors.InputError, match="11 x 10 pixels, more than the safe limit"):
        decode(encoded(noise(10, 11)))
    monkeypatch.setattr(images_module, "MAX_IMAGE_PIXELS", 10**12)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(errors.InputError, match="more pixels than the safe limit"):
        decode(encoded(noise(10, 11)))


def test_large_files_are_refused(vit, folder, monkeypatch):
    monkeypatch.setattr(images_module, "MAX_IMAGE_BYTES", 50)
    with pytest.raises(errors.InputError, match="larger than"):
        open_inputs(load(vit), folder)


def test_a_model_without_a_recipe_needs_flags(vit, folder):
    model = replace(load(vit), processor=None)
    flags = "--image-size --image-mean --image-std"
    with pytest.raises(errors.InputError, match=f"how to preprocess images.*{flags}"):
        open_inputs(model, folder)
    with pytest.raises(errors.InputError, match=f"missing.*{flags}"):
        open_inputs(model, folder, image_size=8)
    given = {"image_size": 8, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (plain,) = open_inputs(load(vit), folder).batches(0, 3)
    (batch,) = open_inputs(model, folder, **given).batches(0, 3)
    torch.testing.assert_close(
        batch.kwargs["pixel_values"], plain.kwargs["pixel_values"], rtol=0, atol=2e-6
    )
    live = load(cnn(channels=3))
    (batch,) = open_inputs(live, folder, **given).batches(0, 3)
    assert live.module(*batch.args).shape == (3, 10)


def test_flags_change_the_models_own_recipe(vit, folder):
    model = load(vit)
    (plain,) = open_inputs(model, folder).batches(0, 3)
    (batch,) = open_inputs(model, folder, image_mean=0.0, image_std=1.0).batches(0, 3)
    mean, std = (torch.tensor(RECIPE[k])[:, None, None] for k in ("image_mean", "image_std"))
    back = plain.kwargs["pixel_values"] * std + mean
    torch.testing.assert_close(batch.kwargs["pixel_values"], back, rtol=0, atol=2e-6)
    (larger,) = open_inputs(model, folder, image_size=[16, 8]).batches(0, 3)
    assert larger.kwargs["pixel_values"].shape == (3, 3, 16, 8)
    assert larger.grid == (8, 4)


def test_uneven_sizes_name_the_flags(tmp_path, vit):
    model = replace(load(vit), processor=PillowProcessor(None, mean=(0.5,) * 3, std=(0.5,) * 3))
    with pytest.raises(errors.InputError, match=r"expected one size.*--image-size"):
        list(open_inputs(model, [noise(8, 8), noise(9, 9)]).batches(0, 2))


def test_unknown_steps_of_a_recipe_are_refused():
    with pytest.raises(errors.InputError, match="do_flip_channel_order"):
        PillowProcessor.from_config(RECIPE | {"do_flip_channel_order": True})
    with pytest.raises(errors.InputError, match="unknown size"):
        PillowProcessor.from_config(RECIPE | {"size": {"longest_edge": 3}})


def test_images_in_memory_are_known_by_their_pixels(vit):
    picture = noise(5, 5)
    inputs = open_inputs(load(vit), [picture, (picture, "dog")])
    (batch,) = inputs.batches(0, 2)
    expected = tensor_key(torch.from_numpy(np.array(picture)))
    assert batch.keys == [expected, expected]
    assert batch.occurrence.tolist() == [0, 1]
    assert batch.label.tolist() == [-1, 1]


def test_wrong_kinds_of_data_are_named(vit, gpt2, tmp_path, folder):
    words = tmp_path / "w.jsonl"
    words.write_text('{"text": "hello there", "label": 1}\n')
    with pytest.raises(errors.InputError, match=r"reads images.*columns text.*right kind"):
        open_inputs(load(vit), words)
    with pytest.raises(errors.InputError, match=r"reads texts.*columns image.*right kind"):
        open_inputs(load(gpt2), folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.InputError, match="contains neither images"):
        open_inputs(load(vit), tmp_path / "empty")


def test_pixel_values_have_the_models_type(vit, folder):
    model = load(vit, dtype="bfloat16")
    (batch,) = open_inputs(model, folder).batches(0, 3)
    assert batch.kwargs["pixel_values"].dtype == torch.bfloat16
    assert batch.length is None


def small_cnn(channels=3):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(channels, 2, 3), torch.nn.ReLU()).eval()


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "--image-mean and --image-std missing"),
        ({"image_size": 8}, "--image-mean and --image-std missing"),
        ({"image_size": 8, "image_std": 1.0}, "--image-mean missing"),
    ],
)
def test_one_error_names_the_whole_recipe(photos, given, missing):
    example = "e.g. --image-size 224 --image-mean 0.5 --image-std 0.5"
    with pytest.raises(errors.InputError, match=f"{missing}.*{example}"):
        open_inputs(load(small_cnn()), photos, **given)


@pytest.mark.truth("Pillow and numpy")
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_one_size_need_no_size(photos, channels):
    inputs = open_inputs(load(small_cnn(channels)), photos, image_mean=0, image_std=1)
    (batch,) = inputs.batches(0, 2)
    image = Image.open(photos / "a" / "0.png").convert("RGB" if channels == 3 else "L")
    expected = np.asarray(image, dtype=np.float32).reshape(6, 8, channels).transpose(2, 0, 1) / 255
    assert batch.args[0].shape == (2, channels, 6, 8)
    assert torch.allclose(batch.args[0][0], torch.from_numpy(expected.copy()), atol=1e-6)
    assert batch.label.tolist() == [0, 1]


def test_a_recipe_for_other_channels_is_refused(photos):
    with pytest.raises(errors.InputError, match="one for each of its 1 channels, got 3"):
        open_inputs(load(small_cnn(1)), photos, image_mean=(0, 0, 0), image_std=1)


def test_a_folder_may_be_named_from_here(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    here = open_inputs(load(small_cnn()), photos.name, image_mean=0, image_std=1)
    assert here.ids == open_inputs(load(small_cnn()), photos, image_mean=0, image_std=1).ids
    assert len(next(iter(here.batches(0, 2)))) == 2
