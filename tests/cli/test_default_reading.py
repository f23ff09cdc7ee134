"""Detectors fitted by their bare words read what their definitions speak of."""

import pytest

DIGITS = ("sonde:digits", "sonde:digits/train", "--limit", 60)
TRAINED = {
    "fod": "fod(passes=2,width=16,heads=2,layers=1,batch=8)",
    "simple_net": "simple_net(passes=2,hidden=16)",
}


def scored(run, probe, limit=4):
    ran = run("score", probe, "sonde:digits", "sonde:digits/test", "--limit", limit, "--json")
    assert ran.code == 0, ran.err
    return ran.json()


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
