"""What the commands of this folder share: quiet runs in one thread, and a page with two marks."""

import argparse
import logging
import warnings
from pathlib import Path

import torch


def parsed(parser: argparse.ArgumentParser, *, has_page: bool = True) -> argparse.Namespace:
    """Return what was typed, with ``--page``; from here on nothing warns and one thread works."""
    if has_page:
        text = "page whose part between two marks is replaced"
        parser.add_argument("--page", type=Path, help=text)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    return parser.parse_args()


def write_part(page: Path | None, begin: str, end: str, text: str) -> None:
    """Replace the part between two marks of a page, if a page is named; end if they are missing."""
    if page is not None:
        before, mark, rest = page.read_text(encoding="utf-8").partition(begin)
        if not mark:
            raise SystemExit(f"{page} lacks the line {begin}")
        after = rest.partition(end)[2]
        page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
