"""Shapes are checked under pytest only: every sonde module is imported through jaxtyping's hook."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("sonde", "shape_checker.check")
