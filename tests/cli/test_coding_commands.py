"""``sonde encode`` and ``sonde decode``."""

import json

import pytest

TEXT = "def read(path):\n    return path.read_text()\n" * 5


@pytest.mark.slow
def test_a_file_comes_back_and_its_sizes_are_told(run, tmp_path):
    file, coded = tmp_path / "a.py", tmp_path / "a.py.coded"
    file.write_text(TEXT)
    told = run("encode", file, "--window", 60, "--json")
    document = json.loads(told.out)
    assert document["coded_bytes"] == coded.stat().st_size < len(TEXT) / 1.5
    assert document["plain_bytes"].keys() == {"zlib", "bzip2", "xz"}
    assert "a.py exists already" in run("decode", coded).error()
    file.unlink()
    assert run("decode", coded).code == 0
    assert file.read_text() == TEXT


def test_what_cannot_work_is_told_in_one_line(run, tmp_path):
    file = tmp_path / "a.py"
    assert "no such file" in run("encode", file).error()
    file.write_text("x = 1\n")
    assert "is also the file to read" in run("encode", file, "-o", file).error()
    assert "expected a language model" in run("encode", file, "--model", "sonde:digits").error()
    assert "does not end in .coded" in run("decode", file).error()
    assert (
        "expected a file that `sonde encode` wrote"
        in run("decode", file, "-o", tmp_path / "b").error()
    )
    assert not (tmp_path / "b").exists()
    file.write_bytes(b"")
    for command in ("encode", "decode"):
        assert (
            "expected a file that is not empty" in run(command, file, "-o", tmp_path / "b").error()
        )
        assert [p.name for p in tmp_path.iterdir()] == ["a.py"]
