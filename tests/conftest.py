"""Shapes are checked under pytest only: every sonde module is imported through jaxtyping's hook.

Each of several pytest workers computes with its share of the cores: two workers whose threads wait
for each other's cores took four to ten times as long.
"""

import os

os.environ.setdefault(
    "OMP_NUM_THREADS",
    str(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))),
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("sonde", "shape_checker.check")
