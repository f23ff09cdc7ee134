"""No public call moves the random numbers of the user, the first of a fresh process included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = """
import random, sys, tempfile
from pathlib import Path
import numpy as np
import torch

moved = []
def states():
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()

class Unmoved:
    def __init__(self, name):
        self.name = name
    def __enter__(self):
        self.before = states()
    def __exit__(self, *_):
        for which, a, b in zip(("random", "numpy", "torch"), self.before, states()):
            if a != b:
                moved.append(f"{self.name} moved {which}")

folder = Path(tempfile.mkdtemp())
torch.manual_seed(1)
x, other = torch.randn(200, 6), torch.randn(200, 6)
label = [i % 2 for i in range(200)]
rows = [{"x": row, "label": i % 2} for i, row in enumerate(x)]
net = torch.nn.Sequential(
    torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 2)
).eval()
with Unmoved("import sonde"):
    import sonde
with Unmoved("read"):
    stream = sonde.read(net, rows)
with Unmoved("iterate"):
    list(stream)
with Unmoved("names"):
    for name in sonde.__all__:
        getattr(sonde, name)
from sonde.detect import KNN, Mahalanobis
with Unmoved("fit"):
    fitted = sonde.fit([Mahalanobis(), KNN(k=3)], stream)
with Unmoved("save"):
    fitted.save(folder / "f.sonde")
with Unmoved("score"):
    sonde.score(fitted, net, rows)
with Unmoved("calibrate"):
    sonde.calibrate(fitted, net, [{**row, "x": row["x"] + 1} for row in rows])
with Unmoved("scan"):
    report = sonde.scan(net, rows)
with Unmoved("print"):
    str(report)
with Unmoved("page"):
    report.save(folder / "r.html")
with Unmoved("Guard"), sonde.Guard(net, fitted):
    net(x)
with Unmoved("Tap"), sonde.Tap(net, "0"):
    net(x)
from sonde import edit, explain, measure
with Unmoved("measure"):
    measure.cka(x, other), measure.two_nn(x), measure.mutual_knn(x, other)
    measure.information_imbalance(x, other), measure.mutual_information(x, other)
with Unmoved("erase"):
    edit.Inlp().fit(x, label)
with Unmoved("editing"), sonde.editing(net, edit.Leace().fit(
        net[0](x).detach(), label).edit(), "0"):
    net(x)
with Unmoved("explain"):
    explain.IntegratedGradients().explain(net, x[:3], objective=explain.Objective(target=0))
with Unmoved("load"):
    model = sonde.load("sonde:digits")
with Unmoved("read digits"):
    list(sonde.read(model, "sonde:digits/test", limit=8))
from sonde.engine.progress import Bar
class Screen:
    isatty = staticmethod(lambda: True)
    write = staticmethod(len)
    flush = staticmethod(lambda: None)
    encoding = "utf-8"
sys.stderr = Screen()
with Unmoved("progress"), Bar("texts", 2, delay_seconds=0.0) as bar:
    bar.advance(2)
assert "rich.progress" in sys.modules  # the bar was drawn
print("; ".join(moved) or "nothing moved")
"""


@pytest.mark.slow
def test_no_call_of_a_fresh_process_moves_a_generator():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    made = subprocess.run(
        [sys.executable, "-c", CALLS],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert made.stdout.strip().splitlines()[-1:] == ["nothing moved"], made.stdout + made.stderr


@pytest.mark.slow
def test_a_generator_that_moves_is_seen():
    """The planted fault: reading draws a number."""
    planted = CALLS.replace("stream = sonde.read(net, rows)", "random.random()").partition(
        'with Unmoved("iterate")'
    )[0]
    made = subprocess.run(
        [sys.executable, "-c", f"{planted}\nprint(moved)"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert made.stdout.strip() == "['read moved random']"
