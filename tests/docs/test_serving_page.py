"""Every command of the page on serving runs, in order, against a real server."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "serve_a_model.md"
BLOCK = re.compile(r"^```(bash|py)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def wait(port, process):
    until = time.monotonic() + 100
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < until, "the server was not ready in time"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready"):
                return
        except OSError:
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks by curl")
def test_the_page_runs(tmp_path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shim = tmp_path / "bin" / "sonde"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m sonde "$@"\n')
    shim.chmod(0o755)
    python = f"{shim.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": python, "PYTHONPATH": os.pathsep.join(sys.path)}
    options = {"cwd": tmp_path, "env": environment, "text": True}
    blocks = [(kind, code.replace("8000", str(port))) for kind, code in BLOCK.findall(
        PAGE.read_text(encoding="utf-8"))]  # fmt: skip
    assert len(blocks) >= 8
    server, said = None, []
    try:
        for kind, code in blocks:
            if code.startswith("sonde serve"):
                server = subprocess.Popen(["bash", "-c", f"exec {code}"], **options)
                wait(port, server)
                continue
            start = ["bash", "-euo", "pipefail", "-c"] if kind == "bash" else [sys.executable, "-c"]
            ran = subprocess.run([*start, code], capture_output=True, timeout=400, **options)
            assert ran.returncode == 0, (code, ran.stderr)
            said.append(ran.stdout)
        assert server is not None
        server.send_signal(signal.SIGTERM)
        assert server.wait(40) == 0
    finally:
        if server is not None and server.poll() is None:
            server.kill()
            server.wait()
    first, again = (json.loads((tmp_path / n).read_text()) for n in ("answer.json", "again.json"))
    (answer,), (other,) = first["answers"], again["answers"]
    assert (answer["answer"], answer["p"]) == (other["answer"], other["p"])
    assert answer["answer"] == "7"
    asked = next(text for text in said if "vit.layers" in text and "False" in text)
    assert asked.split()[1] == "7"
    accuracy = next(text for text in said if '"accuracy"' in text)
    assert json.JSONDecoder().raw_decode(accuracy)[0]["all"]["n"] == 1
    assert any("3 examples" in text or "4 examples" in text for text in said)
