"""Tar files of WebDataset as rows."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sonde
from sonde.core.errors import InputError
from sonde.core.hashing import bytes_key
from sonde.data import load, open_inputs
from sonde.data.early import check_data
from sonde.data.opening import open_source


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def array_bytes(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 2, 3)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Write 3 shards of 5, 1 and 7 texts, and return their pattern with all rows."""
    rows, n = list[dict[str, object]](), 0
    for k, size in enumerate((5, 1, 7)):
        members: list[tuple[str, bytes]] = []
        for i in range(n, n + size):
            key = f"part{k}/{i:06d}"
            about = json.dumps({"source": f"s{i}", "n": i}).encode()
            members += [(f"{key}.cls", b"%d\n" % (i % 3)), (f"{key}.json", about)]
            members += [(f"{key}.txt", f"text {i}".encode()), (f"{key}.pyd", b"a pickle")]
            rows.append({"label": i % 3, "source": f"s{i}", "n": i, "text": f"text {i}"})
        write_tar(tmp_path / f"texts-{k:03d}.tar", members)
        n += size
    return tmp_path, rows


@pytest.mark.truth("the rows that were written")
@pytest.mark.parametrize("form", ["folder", "pattern", "braces", "list"])
def test_shards_are_one_set_of_rows(shards, form):
    folder, rows = shards
    names = sorted(str(p) for p in folder.glob("*.tar"))
    forms = {"folder": folder, "pattern": f"{folder}/texts-*.tar", "list": names}
    data = {**forms, "braces": f"{folder}/texts-{{000..002}}.tar"}[form]
    check_data(data, ["text"])
    source, _ = open_source(data)
    assert list(source.rows()) == rows
    for start, stop in ((0, 13), (3, 8), (12, 13), (4, 5)):
        assert source.take(start, stop) == rows[start:stop]
    assert source.place(6) == "texts-002.tar sample part2/000006"
    assert list(source.labels("n") or ()) == list(range(13))


@pytest.mark.truth("the members that were written")
def test_images_arrays_and_named_members(tmp_path, vit):
    members = [("a.PNG", png(1)), ("a.seg.png", png(2)), ("a.cls", b"1"), ("__meta__.txt", b"no")]
    members += [("b.png", png(3)), ("b.cls", b"0"), ("b.weights.npy", array_bytes(np.arange(3.0)))]
    path = write_tar(tmp_path / "images.tar", members)
    first, second = open_source(path)[0].rows()
    assert first["image"] == {"bytes": png(1), "path": "a.PNG"}
    assert first["seg"]["bytes"] == png(2)
    assert second["weights"].tolist() == [0, 1, 2]
    inputs = open_inputs(load(vit), path, image_size=8)
    (batch,) = inputs.batches(0, 2)
    assert batch.keys == [bytes_key(png(1)), bytes_key(png(3))]
    assert batch.label.tolist() == [1, 0]


def test_arrays_are_features(tmp_path):
    from models import mlp

    values = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    members = [(f"{i}.npy", array_bytes(row)) for i, row in enumerate(values)]
    path = write_tar(tmp_path / "x.tar", members)
    rows = [sonde.gather(sonde.read(mlp(), data)).rows for data in (path, values)]
    assert all((rows[0][key] == rows[1][key]).all() for key in rows[1])


def test_damaged_shards_are_refused(tmp_path):
    whole = write_tar(tmp_path / "a.tar", [(f"{i}.txt", b"text") for i in range(9)]).read_bytes()
    reasons = {
        2 * 512: "end of the file",  # at the border of a row
        2 * 512 + 100: "damaged or cut|cannot be read",
        512 + 2: "ends inside of 0.txt|cannot be read",
    }
    path = tmp_path / "cut.tar"
    for size, reason in reasons.items():
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=reason):
            list(open_source(path)[0].rows())
    path.write_bytes(whole[:1024] + b"?" * 512 + whole[1536:])
    with pytest.raises(InputError, match="damaged or cut"):
        list(open_source(path)[0].rows())
    path.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(InputError, match="uncompressed tar file"):
        list(open_source(path)[0].rows())
    for name, content, reason in (
        ("0.npy", b"?", "0.npy cannot be read"),
        ("0.json", b"{", "0.json cannot be read"),
        ("0.pyd", b"?", "sample 0 has no member that is read, only pyd"),
    ):
        with pytest.raises(InputError, match=reason):
            list(open_source(write_tar(path, [(name, content)]))[0].rows())
