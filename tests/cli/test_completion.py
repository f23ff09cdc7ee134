"""A real bash completes commands, words behind them, flags and files."""

import shutil
import subprocess

import pytest

from sonde.cli.commands import COMMANDS, words_and_flags
from sonde.cli.completion import script


def completed(script_file, folder, *words):
    """Return what bash offers after the words; the last one is being typed."""
    typed = " ".join(f'"{word}"' for word in ("sonde", *words))
    code = (
        f"source {script_file}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _sonde; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, check=True, cwd=folder
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(run, tmp_path):
    file = tmp_path / "sonde.bash"
    file.write_text(run("completion", "bash").out)
    (tmp_path / "rows.csv").write_text("a\n1\n")
    assert completed(file, tmp_path, "sc") == ["scan", "score"]
    assert "more" in completed(file, tmp_path, "")
    assert {"steer", "undo"} <= {*completed(file, tmp_path, "edit", "")}
    assert completed(file, tmp_path, "scan", "m", "rows") == ["rows.csv"]
    assert "--fail-on" in completed(file, tmp_path, "scan", "m", "d", "--fa")
    assert "--positive" in completed(file, tmp_path, "edit", "steer", "m", "--po")
    assert completed(file, tmp_path, "compress", "undo", "--nothing") == []


def test_every_command_is_known_without_its_positional_words():
    known = words_and_flags()
    assert set(COMMANDS) <= set(known)
    assert "--model" not in known["scan"]
    assert {"--limit", "-o", "--help"} <= {*known["scan"]}
    for shell in ("zsh", "fish"):
        assert all(word in script(shell, known) for word in COMMANDS)
