"""Gates in tests and pipelines: ``assert_scan``, its fixture, the action and the templates."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.cli_case import run_words

from sonde.core import InputError
from sonde.testing import assert_scan

ROOT = Path(__file__).resolve().parents[2]
RIGHT = {"image_mean": 0.5, "image_std": 0.5}
FEW = {"limit": 64, "progress": False}


@pytest.mark.slow
def test_what_holds_passes_and_what_does_not_fails_with_its_figure(tmp_path):
    digits = ("sonde:digits", "sonde:digits/test")
    report = assert_scan(*digits, "accuracy>=.9", "no SND015", **RIGHT, **FEW)
    accuracy = report.json()["answers"]["value"]
    page = tmp_path / "page.html"
    with pytest.raises(AssertionError, match=re.escape(f"accuracy {accuracy:.4g} < .999")):
        assert_scan(*digits, "accuracy>=.999", page=page, **RIGHT, **FEW)
    assert page.read_text().startswith("<!doctype html>")
    with pytest.raises(AssertionError, match=r"loss > 0\.00001|loss [\d.e-]+ > 0\.00001"):
        assert_scan(*digits, "loss<=0.00001", **RIGHT, **FEW)
    with pytest.raises(InputError, match="expected a limit"):
        assert_scan(*digits, "accuracy=.9")


@pytest.mark.slow
def test_the_fixture_keeps_the_page_of_a_scan_that_fails(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "def test_digits(assert_scan):\n"
        "    assert_scan('sonde:digits', 'sonde:digits/test', 'accuracy>=.9',\n"
        "                image_mean=0, image_std=1, limit=64, progress=False)\n"
    )
    plugin = ("--sonde-pages", "pages", "-q")  # the installed package names the plugin
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert re.search(r"the scan does not satisfy accuracy>=\.9: accuracy 0\.\d+ < \.9", ran.stdout)
    assert (tmp_path / "pages" / "test_digits.html").is_file()


def command_of(text):
    """Return the words of ``sonde scan`` in a shell script, with its variables by their names."""
    (line,) = re.findall(r"^sonde scan .+$", text, re.MULTILINE)
    return shlex.split(line)[1:]


@pytest.mark.slow
def test_the_commands_of_action_template_and_hook_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    template = yaml.safe_load((ROOT / "examples/ci/gitlab.yml").read_text())[".sonde-scan"]
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    given = {
        "$MODEL": ["sonde:digits"],
        "$DATA": ["sonde:digits/test"],
        "$FAIL_ON": ["accuracy<.95"],
        "$PAGE": ["sonde-report.html"],
        "$ARGUMENTS": ["--limit", "64", "--image-mean", "0", "--image-std", "1"],
    }
    few = given["$ARGUMENTS"]
    commands = {
        "action": command_of(action["runs"]["steps"][1]["run"]),
        "template": [*command_of("\n".join(template["script"])), *few],
        "hook": [*shlex.split(hook["entry"])[1:], "$MODEL", "$DATA", "--fail-on", "$FAIL_ON", *few],
    }
    for name, words in commands.items():
        ran = run_words(*(word for w in words for word in given.get(w, [w])))
        assert ran.code == 1, (name, ran.err)
        assert "gate accuracy<.95: failed by accuracy" in ran.err, name
    used = set(action["inputs"]) - {"install"}
    assert used == {name.lower().removeprefix("$").replace("_", "-") for name in given}
    assert (tmp_path / template["artifacts"]["paths"][0]).is_file()
