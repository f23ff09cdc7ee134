"""``python -m tools.lm.few_rows MODEL@SITE``: edits that are fitted on fewer rows than dimensions.

Every edit of activations that is fitted on rows of two classes is fitted on the tokens of some
texts, at most as many as 40 % of the dimensions, and applied to these tokens and to tokens of other
texts. Its movement is the root mean square change, in standard deviations of the other texts' rows,
with its standard error over texts. An edit that moves new rows over twice as far as its own rows
does what its own rows do not show. Sinks are left out; the class is the half of its text that a
token is in.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from tools.lm.__main__ import TokenRows, instruments, read_rows
from tools.lm.commands import parsed
from tools.lm.train_twin import FOLDER, document
from torch import Tensor

import sonde
from sonde.core.edit import EditContext
from sonde.core.errors import SondeError
from sonde.core.few_groups import grouped_error
from sonde.core.site import Site

SEEDS = 40
FEW = 0.4
TOO_FAR = 2.0


def part(rows: TokenRows, keep: Tensor) -> TokenRows:
    """Return some of the rows."""
    return TokenRows(*(x[keep] for x in (rows.x, rows.y, rows.label, rows.group, rows.sink)))


def movement(edit: Any, rows: TokenRows, unit: float) -> tuple[float, float]:
    """Return the root mean square change of rows in units, and its standard error over texts."""
    moved = edit.apply(rows.x.float()[None], Site("x"), EditContext())[0].double() - rows.x
    square = moved.square().sum(1) / unit**2
    group = torch.unique(rows.group, return_inverse=True)[1]
    gaps = torch.zeros(int(group.max()) + 1, dtype=torch.float64)
    gaps.index_add_(0, group, square - square.mean())
    error = float(grouped_error(gaps, torch.bincount(group))) / len(square)
    root = float(square.mean().sqrt())
    return root, error / (2 * root) if root > 0 else 0.0


def lines(own: TokenRows, new: TokenRows) -> list[str]:
    """Return a line of the table for each edit."""
    unit = float((new.x - new.x.mean(0)).square().sum(1).mean().sqrt())
    found: list[str] = []
    tried = {type(one).__name__: one for room, one in instruments() if room == "edit"}
    for name, instrument in tried.items():
        columns: dict[str, Any] = {"y": own.y} if instrument.span == "pair" else {}
        try:
            result = instrument.fit(own.x, own.label, group=own.group, **columns)
            edit = result.edit()
            first, second = (movement(edit, rows, unit) for rows in (own, new))
        except AttributeError:
            continue  # a state for other methods, or a condition: no edit by itself
        except SondeError as error:
            found.append(f"| {name} | {str(error).splitlines()[0][:80]} | | | |")
            continue
        far = "yes" if second[0] > TOO_FAR * first[0] else ""
        said = "yes" if "few_rows" in result.flags else ""
        cells = " | ".join(f"{value:.3g} ± {error:.2g}" for value, error in (first, second))
        found.append(f"| {name} | {cells} | {far} | {said} |")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm.few_rows", description=__doc__)
    default = f"{FOLDER}@model.layers.3"
    parser.add_argument("models", nargs="*", default=[default], help="FOLDER@SITE of each model")
    typed = parsed(parser, has_page=False)
    draw = random.Random(1)
    texts = [document(draw).replace("<|endoftext|>", "") for _ in range(SEEDS)]
    for text in typed.models:
        folder, _, site = text.rpartition("@")
        rows = read_rows(sonde.load(folder), texts, site).without()
        ends = torch.bincount(rows.group).cumsum(0)
        last = int((ends <= FEW * rows.x.shape[1]).sum())
        own, new = part(rows, rows.group < last), part(rows, rows.group >= max(last, SEEDS // 2))
        print(
            f"\n{Path(folder).name}, {site}: {len(own.x)} rows of {last} texts in "
            f"{rows.x.shape[1]} dimensions; {len(new.x)} held-out rows of "
            f"{len(new.group.unique())} texts.\n"
        )
        print("| edit | own rows | held-out rows | over twice as far | few_rows |")
        print("|---|---|---|---|---|")
        print("\n".join(lines(own, new)))


if __name__ == "__main__":
    main()
