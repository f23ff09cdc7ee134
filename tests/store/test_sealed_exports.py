"""Exports carry a hash of every byte: what changed is found, by the check and by who reads them."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from file_limit import files_up_to
from sonde.cli import main
from sonde.core.errors import InputError, StoreError
from sonde.core.stream import Stream
from sonde.data.arrays import load_arrays
from sonde.files.seal import is_sealed, sealed_file
from sonde.store import Store, write_store
from sonde.store.exporting import SUFFIXES, export_store, verify_export
from sonde.store.exporting.to_lance import FILES, files_in

OF_ONE_FILE = [suffix for suffix in SUFFIXES if suffix != ".lance"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    ids = [f"row {i}" for i in range(40)]
    return Store(write_store(Stream.of({"a": rows, "b": rows.half()}, ids=ids, label=[0, 1] * 20),
                             tmp_path_factory.mktemp("sealed") / "acts"))  # fmt: skip


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    """Return the export of a suffix, written once."""
    made: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("exported")

    def of(suffix: str) -> Path:
        if suffix == ".lance":
            pytest.importorskip("lance")
        if suffix not in made:
            made[suffix] = folder / f"acts{suffix}"
            export_store(store, made[suffix], rows=True, neighbors=2)
        return made[suffix]

    return of


def is_found(path: Path) -> bool:
    """Return whether the check finds a fault, or no hash of ours."""
    try:
        return not verify_export(path).is_sound
    except InputError as error:
        return "contains no hash of sonde" in str(error)


@pytest.mark.parametrize("suffix", OF_ONE_FILE)
@pytest.mark.truth("the bytes before and after")
def test_every_flipped_bit_is_found(exported, tmp_path, suffix):
    sound = exported(suffix)
    found = verify_export(sound)
    assert found.is_sound
    assert found.checked["n_rows" if suffix == ".parquet" else "n_arrays"] > 1
    content, rng = sound.read_bytes(), random.Random(0)
    path = tmp_path / sound.name
    digits = content.rindex(b"sonde-seal:")
    places = [*range(8), *range(len(content) - 30, len(content)), *range(digits, digits + 43)]
    places += [rng.randrange(len(content)) for _ in range(150)]
    for at in places:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)])
                         + content[at + 1 :])  # fmt: skip
        assert is_found(path), at


@pytest.mark.parametrize("suffix", OF_ONE_FILE)
def test_a_file_that_ends_early_is_found(exported, tmp_path, suffix):
    content, path = exported(suffix).read_bytes(), tmp_path / f"a{suffix}"
    for n in (0, 7, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:n])
        assert not verify_export(path).is_sound, n


@pytest.mark.truth("the bytes before and after")
def test_every_file_of_lance_is_checked(exported, tmp_path):
    sound = exported(".lance")
    assert verify_export(sound).is_sound
    assert verify_export(sound).checked["n_files"] >= 4
    for i, victim in enumerate([*files_in(sound), sound / FILES]):
        copy = Path(shutil.copytree(sound, tmp_path / f"{i}.lance"))
        path = copy / victim.relative_to(sound)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        assert [fault.path for fault in verify_export(copy).faults] == [path]
        path.unlink()
        if victim.name == FILES:
            with pytest.raises(InputError, match=r"holds no sonde\.json"):
                verify_export(copy)
        else:
            assert [fault.what for fault in verify_export(copy).faults] == ["the file is missing"]


@pytest.mark.truth("Lance reads and grows a data set with our list beside its files")
def test_lance_passes_over_the_list_of_files(exported, tmp_path):
    lance = pytest.importorskip("lance")
    copy = Path(shutil.copytree(exported(".lance"), tmp_path / "a.lance"))
    found = lance.dataset(str(copy))
    lance.write_dataset(found.to_table(), str(copy), mode="append")
    assert lance.dataset(str(copy)).count_rows() == 80
    checked = verify_export(copy)
    assert checked.is_sound
    assert "were added by another program" in checked.notes[0]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.truth("numpy and safetensors read the sealed file")
def test_arrays_that_changed_are_not_read(exported, tmp_path, suffix):
    sound, path = exported(suffix), tmp_path / f"a{suffix}"
    plain = np.load(sound) if suffix == ".npz" else load_file(sound)
    assert torch.equal(torch.as_tensor(load_arrays(sound)["a"]), torch.as_tensor(plain["a"]))
    content = bytearray(sound.read_bytes())
    at = content.index(torch.as_tensor(plain["a"]).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="its bytes differ from those that sonde export wrote"):
        load_arrays(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_other_programs_are_not_judged(store, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".lance":
        path.mkdir()
    elif suffix == ".parquet":
        parquet.write_table(parquet.read_table(_exported_parquet(store, tmp_path)).select(["id"])
                            .replace_schema_metadata(), path)  # fmt: skip
    elif suffix == ".npz":
        np.savez(path, x=np.ones(3))
    else:
        from safetensors.numpy import save_file

        save_file({"x": np.ones(3)}, path)
    with pytest.raises(InputError, match="another program wrote it"):
        verify_export(path)


def _exported_parquet(store: Store, folder: Path) -> Path:
    export_store(store, folder / "whole.parquet", neighbors=0)
    return folder / "whole.parquet"


@pytest.mark.truth("numpy writes the same arrays without a hash")
def test_an_export_without_its_hash_is_no_sound_one(exported, tmp_path):
    import zipfile

    path = Path(shutil.copy(exported(".npz"), tmp_path / "a.npz"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = archive.comment.replace(b"sonde-seal:", b"")
    assert is_sealed(path) is None
    assert "contains no hash of its bytes" in verify_export(path).faults[0].what


@pytest.mark.parametrize("n_bytes", [0, 5, 2**20 - 43, 2**20, 5 * 2**20 + 1])
def test_a_seal_stands_behind_any_number_of_bytes(tmp_path, n_bytes):
    path = tmp_path / "a.bin"
    with sealed_file(path) as file:
        for start in range(0, n_bytes, 300_000):
            file.write(bytes(min(300_000, n_bytes - start)))
        file.write(b"end sonde-seal:" + b"0" * 32)
    assert is_sealed(path) is True
    with path.open("r+b") as raw:
        raw.seek(n_bytes // 2)
        raw.write(b"x")
    assert is_sealed(path) is False


def test_no_file_is_no_seal(tmp_path):
    with pytest.raises(StoreError, match="cannot read"):
        is_sealed(tmp_path / "none.npz")


@pytest.fixture(scope="module")
def tall(tmp_path_factory) -> Path:
    rows = torch.randn(6_000, 16, generator=torch.Generator().manual_seed(0))
    return write_store(Stream.of(rows), tmp_path_factory.mktemp("tall") / "acts")


@pytest.mark.parametrize("suffix", [".lance", ".npz"])
@pytest.mark.truth("RLIMIT_FSIZE of the operating system")
def test_a_full_disk_is_told_and_leaves_nothing(tall, tmp_path, suffix, capsys):
    if suffix == ".lance":
        pytest.importorskip("lance")
    with files_up_to(100_000):
        code = main(["export", str(tall), "-o", str(tmp_path / f"a{suffix}"), "--neighbors", "0"])
    (line,) = capsys.readouterr().err.splitlines()
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert line.startswith(f"error: could not write {tmp_path / 'a'}{suffix}: File too large.")
    assert "Free some space" in line
