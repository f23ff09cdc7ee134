"""Run every command in this environment: ``env/bin/python -I tools/every_command.py [WORD ...]``.

The example of each page of help runs with few rows, then the commands that need an extra. A
command passes if it works, or if it ends with code 2 and one line that names what to install. The
file imports nothing but sonde, so it runs in an environment that holds the wheel alone.
"""

import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import pkgutil
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sonde
from sonde.cli import main as run_words
from sonde.cli.commands import COMMANDS, SECOND
from sonde.cli.edits import EDITS

DIGITS = "sonde:digits sonde:digits/test"
TRAIN = "sonde:digits sonde:digits/train"
ACTS = f"read {DIGITS} --sites blocks -o acts --limit 32"
PROBE = f"fit mahalanobis {TRAIN} -o probe.sonde --limit 64"
SMALL = "compress sonde:digits sonde:digits --to 8bit --method rtn -o NEW"
FIRST = {
    "calibrate": [PROBE],
    "score": [PROBE],
    "info": [PROBE],
    "serve": [PROBE],
    "merge": ["fit mahalanobis - a.npz -o a.sonde", "fit mahalanobis - b.npz -o b.sonde"],
    "drift": ["fit mahalanobis - a.npz -o a.sonde", "fit mahalanobis - b.npz -o b.sonde"],
    "evaluate": [
        "fit knn - a.npz -o a.sonde",
        "score a.sonde - a.npz -o usual.parquet",
        "score a.sonde - b.npz -o unusual.parquet",
    ],
    "export": [ACTS],
    "verify": [ACTS],
    "decode": ["encode notes.txt --model sonde:stdlib"],
    "edit judge": [
        "edit ablate sonde:stdlib --positive sonde:upper --negative sonde:lower -o NEW --limit 8"
    ],
    "edit undo": [SMALL],
    "compress undo": [SMALL],
}
"""Commands that write what an example reads."""
KNOWN = {
    **COMMANDS,
    **{f"edit {word}": command for word, command in EDITS.items()},
    **{f"{word} {second}": c for word, more in SECOND.items() for second, c in more.items()},
}
NEEDS = {
    "hf": {"datasets", "accelerate"},
    "ray": {"ray"},
    "lance": {"lance"},
    "serve": {"starlette", "uvicorn", "prometheus_client", "python_multipart"},
    "audio": {"soundfile"},
    "codec": {"constriction"},
    "train": {"peft"},
    "text": {"py3langid"},
    "gguf": {"gguf", "accelerate"},
    "vllm": {"vllm"},
}
"""The modules that each extra brings."""
OUTSIDE = {"litserve", "fastapi", "mlflow", "wandb", "tensorboard", "pytest", "sonde_studies"}
"""Packages that a module of sonde may ask for by its purpose; no command imports them."""
EXTRA_COMMANDS = {
    "hf, a data set on disk": ("hf", [], "scan sonde:digits saved --limit 32"),
    "hf, spread over devices": ("hf", [], f"fit mahalanobis {TRAIN} --device map --limit 64"),
    "ray, two actors": (
        "ray",
        [],
        f"fit mahalanobis {TRAIN} --runner ray --workers 2 --limit 64 -o r.sonde",
    ),
    "lance, stored rows": ("lance", [ACTS], "export acts -o acts.lance"),
    "audio, a folder of WAV": ("audio", [], "fit mahalanobis hears sounds -o s.sonde"),
    "train, low-rank adapters": (
        "train",
        [],
        f"train {TRAIN} --terms rate_reduction --sites blocks.1 --scope low-rank:2 --epochs 1 "
        "--limit 240 -o LOW",
    ),
    "text, languages": ("text", [], "scan sonde:stdlib sonde:stdlib/test --limit 48 --json"),
}
"""Extra, commands before, command: what the extras are for, beside the examples."""
NAMED = re.compile(r"pip install '?sonde-torch\[(\w+)\]|pip install (?:packages/)?(sonde-studies)")


@dataclass(frozen=True)
class Row:
    """What came of one command."""

    name: str
    outcome: str
    passed: bool
    seconds: float


def example_of(command: type) -> str:
    """Return the command line of the example of a page of help."""
    found = re.search(r"^Example: (.+?)(?:\n\n|\Z)", inspect.getdoc(command) or "", re.M | re.S)
    if found is None:
        raise ValueError(f"no example in the help of {command.__name__}")
    return " ".join(found[1].split()) if '"' not in found[1] else found[1].replace("\n", " ")


def few_rows(word: str, words: list[str], flags: str) -> list[str]:
    """Return the words of an example with few rows or short texts.

    Parameters
    ----------
    word : str
        The command.
    words : list of str
        What is behind ``sonde`` in its example.
    flags : str
        The command's page of help.
    """
    if word == "cache":  # every rule at every budget over 32 texts takes minutes
        return [*words, "--limit", "4", "--rules", "streaming_cache"]
    if word == "train":
        return [*words, "--epochs", "1", "--limit", "240"]
    few = [("--limit", "8" if word.startswith("edit ") else "64")]
    if word.startswith("edit ") and "--limit" in words:  # so few rows may do no more than chance
        few += [("--max-length", "16"), ("--force",)]
    return [*words, *(x for option in few if option[0] in flags for x in option)]


def make_files() -> None:
    """Write the arrays and the text that examples read."""
    import numpy as np

    draw = np.random.default_rng(0)
    for name, far in (("a", 0.0), ("b", 1.5)):
        np.savez(f"{name}.npz", x=(draw.normal(size=(150, 6)) + far).astype("f4"))
    y = np.arange(150) % 3
    x = draw.normal(size=(150, 6)) + 4 * np.eye(6)[y]
    np.savez("labels.npz", x=x, y=np.where(np.arange(150) < 9, (y + 1) % 3, y))
    Path("notes.txt").write_text("def read(path):\n    return open(path).read()\n" * 3)


def make_track() -> None:
    """Write the measures of a training run of two steps."""
    import torch

    from sonde.measure import ParticipationRatio
    from sonde.run.training.callback import Recorder

    probe = [{"x": row} for row in torch.randn(40, 5)]
    net = torch.nn.Linear(5, 3)
    recorder = Recorder(ParticipationRatio(), probe, "run.track", sites=[""])
    for step in (0, 10):
        recorder.record(net, step)


def make_sounds() -> None:
    """Write a small classifier of recordings with random weights, and recordings of two pitches."""
    import numpy as np
    import torch
    from scipy.io import wavfile
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 2}
    convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
    rest = {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "intermediate_size": 32}
    groups = {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    options: dict[str, Any] = {**sizes, **convolutions, **rest, **groups}
    config = Wav2Vec2Config(**options)
    Wav2Vec2ForSequenceClassification(config).save_pretrained("hears")
    Wav2Vec2FeatureExtractor().save_pretrained("hears")
    draw = np.random.default_rng(0)
    for name, pitch in (("low", 200.0), ("high", 1500.0)):
        folder = Path("sounds", name)
        folder.mkdir(parents=True)
        for i in range(12):
            wave = np.sin(2 * np.pi * pitch * np.arange(8000) / 16000) * 0.5
            noisy = wave + draw.normal(size=8000) * 0.02
            wavfile.write(folder / f"{i}.wav", 16000, noisy.astype("f4"))


def make_dataset() -> None:
    """Write a data set as the package datasets does; without it, the two files that mark it."""
    if importlib.util.find_spec("datasets") is None:
        Path("saved").mkdir()
        Path("saved/state.json").write_text("{}")
        Path("saved/dataset_info.json").write_text("{}")
        return
    import numpy as np
    from datasets import Array3D, Dataset, Features, Value

    x = np.random.default_rng(0).random((48, 1, 8, 8)).astype("f4")
    features = Features({"pixel_values": Array3D((1, 8, 8), "float32"), "label": Value("int64")})
    rows = {"pixel_values": list(x), "label": [i % 10 for i in range(48)]}
    Dataset.from_dict(rows, features=features).save_to_disk("saved")


MADE: dict[str, Callable[[], None]] = {
    "track": make_track,
    "audio, a folder of WAV": make_sounds,
    "hf, a data set on disk": make_dataset,
}
"""What has to be written before a command, beside arrays and a text."""


def has(extra: str) -> bool:
    """Return whether all modules of an extra are installed."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDS[extra])


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of sonde in this process, which saves the import of torch for each."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_words([*words])
    return subprocess.CompletedProcess([*words], code, out.getvalue(), err.getvalue())


def judge(done: subprocess.CompletedProcess[str], needs: str) -> tuple[str, bool]:
    """Return what came of a command, and whether that is right in this environment.

    Parameters
    ----------
    done : subprocess.CompletedProcess
    needs : str
        The extra that the command is for; empty if any is fine.
    """
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    named = NAMED.search(lines[0]) if len(lines) == 1 else None
    if done.returncode == 2 and named is not None and lines[0].startswith("error: "):
        missing = named[1] or named[2]
        absent = importlib.util.find_spec("sonde_studies") is None if named[2] else not has(missing)
        return f"names {missing}", absent and needs in ("", missing)
    if done.returncode == 0:
        failed = failed_checks(done.stdout)
        return (f"checks failed: {failed}", False) if failed else ("works", True)
    return f"code {done.returncode}: {done.stderr.strip()[-600:]}", False


def failed_checks(printed: str) -> list[str]:
    """Return the checks of a scan's JSON that ended in an error."""
    if not printed.startswith("{"):
        return []
    checks = json.loads(printed).get("checks", ())
    return [str(check) for check in checks if check["state"] == "failed"]


def serve(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Start a server, wait until it is ready, end it, and return how it ended."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [str(Path(sys.executable).with_name("sonde")), *words, "--port", str(port)]
    with tempfile.TemporaryFile("w+") as said:
        server = subprocess.Popen(command, stdout=said, stderr=said, stdin=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while server.poll() is None and time.monotonic() < until:
            if is_ready(port):
                server.send_signal(signal.SIGTERM)
                break
            time.sleep(0.2)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        said.seek(0)
        return subprocess.CompletedProcess(command, server.returncode, "", said.read())


def is_ready(port: int) -> bool:
    """Return whether the server of a port answers and is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
            return True
    except OSError:
        return False


def try_command(name: str, word: str, before: Sequence[str], words: list[str], extra: str) -> Row:
    """Run one command in a folder of its own, after those that write what it reads."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sonde-every-") as place, contextlib.chdir(place):
        make_files()
        MADE.get(name, lambda: None)()
        for command in before:
            done = run(shlex.split(command))
            if done.returncode:
                outcome, passed = judge(done, "")
                return Row(name, f"before it: {outcome}", passed, time.monotonic() - start)
        done = serve(words) if word == "serve" else run(words)
    outcome, passed = judge(done, extra)
    if extra and has(extra):
        passed = passed and outcome == "works"
    return Row(name, outcome, passed, time.monotonic() - start)


def import_modules() -> list[Row]:
    """Import every module of sonde; a missing package has to be one of an extra."""
    rows, wanted = [], set().union(*NEEDS.values()) | OUTSIDE
    for module in pkgutil.walk_packages(sonde.__path__, "sonde."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            lacking = (error.name or "").partition(".")[0]
            fine = lacking in wanted or NAMED.search(str(error)) is not None
            rows.append(Row(f"import {module.name}", f"needs {lacking or error}", fine, 0.0))
    return rows


def rows_of(words: Sequence[str]) -> list[Row]:
    """Run the named commands, or all of them, and print a line of each."""
    rows = [] if words else import_modules()
    chosen = [word for word in KNOWN if not words or word in words]
    for word in chosen:
        example = shlex.split(example_of(KNOWN[word]))[1:]
        flags = run([*word.split(), "--help"]).stdout
        rows.append(
            try_command(word, word, FIRST.get(word, ()), few_rows(word, example, flags), "")
        )
        print_row(rows[-1])
    for name, (extra, before, command) in EXTRA_COMMANDS.items():
        if not words or name in words or extra in words:
            parts = shlex.split(command)
            rows.append(try_command(name, parts[0], before, parts, extra))
            print_row(rows[-1])
    return rows


def print_row(row: Row) -> None:
    """Print one line of the table."""
    mark = "ok  " if row.passed else "FAIL"
    print(f"{mark} {row.name:28} {row.outcome}  ({row.seconds:.0f} s)", flush=True)


def main() -> int:
    """Print the table; 1 if a command neither works nor names what it needs."""
    print(f"Python {sys.version.split()[0]}; sonde from {Path(str(sonde.__file__)).parent}")
    installed = [str(Path(sys.executable).with_name("sonde")), "--version"]
    print(subprocess.run(installed, capture_output=True, text=True, check=True).stdout.strip())
    print("extras:", ", ".join(extra for extra in NEEDS if has(extra)) or "none", flush=True)
    rows = rows_of(sys.argv[1:])
    for row in rows:
        if row.name.startswith("import "):
            print_row(row)
    failed = [row.name for row in rows if not row.passed]
    print(f"{len(rows)} tried, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
