"""Architectures that transformers splits over two ranks (gloo), beside the whole model."""

import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tools.matrix.architectures import ARCHITECTURES
from tools.matrix.cases import Case, first, with_first
from tools.matrix.jobs import JOBS, Wrong, check_equal, words
from tools.matrix.table import REFUSED, RIGHT, WRONG, Cell
from torch import distributed

import sonde
from sonde.core.edit import Add

PARALLEL = "tensor parallel, 2 ranks"
ABOUT_PARALLEL = (
    'Split by `tp_plan="auto"` over two processes: rows, a fitted measure and the answers with an '
    "edited block are those of the whole model"
)
SPLIT = (
    *("gpt_neox", "llama", "mistral", "qwen2", "qwen3", "phi3"),
    *("gemma2", "gemma3", "olmo2", "cohere", "granite", "mixtral"),
)
N_RANKS, SECONDS = 2, 1500.0


def edited(case: Case, model: Any) -> None:
    """Raise where answers with an edited block differ from those of the whole model."""
    schema = sonde.read(model, case.data).schema[0]
    direction = torch.randn(schema.dim, generator=torch.Generator().manual_seed(2))

    def hook(_m: Any, _a: Any, output: Any) -> Any:
        x = first(output)
        return with_first(output, x + 0.7 * case.beside(direction, x))

    handle = case.plain.get_submodule(schema.site.path).register_forward_hook(hook)
    expected = case.answers(case.plain)
    handle.remove()
    with sonde.editing(model, Add(direction, 0.7), schema.site.path):
        check_equal(case.answers(model), expected, "answers with an edited block")


def verdict(case: Case) -> tuple[str, str]:
    """Return the verdict on one architecture, and what was said."""
    from transformers.distributed.configuration_utils import DistributedConfig

    plan = DistributedConfig(tp_plan="auto", tp_size=N_RANKS)
    kind: Any = type(case.built)
    try:
        model = kind.from_pretrained(case.folder, distributed_config=plan).eval()
        case.__dict__["model"] = model
        for job in ("read", "fit"):
            JOBS[job](case)
        edited(case, model)
    except sonde.SondeError as error:
        return REFUSED, f"{type(error).__name__}: {words(error)}"
    except Wrong as error:
        return WRONG, words(error)
    except Exception as error:
        return WRONG, f"{type(error).__name__}: {words(error)}"
    return RIGHT, ""


def in_rank(rank: int, folder: Path, names: Sequence[str]) -> None:
    """Write the verdicts of one rank."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(N_RANKS)}
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=N_RANKS)
    verdicts = {}
    for name in names:
        place = folder / name
        place.mkdir(exist_ok=True)
        case = Case(ARCHITECTURES[name], place)  # rank 0 alone writes the folder
        distributed.barrier()
        verdicts[name] = verdict(case)
        torch.save(verdicts, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def parallel_cells(names: Sequence[str]) -> list[Cell]:
    """Return a cell for each architecture, from the ranks that judge worst."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="sonde-matrix-") as place:
        folder = Path(place)
        ranks = [
            context.Process(target=in_rank, args=(rank, folder, names), daemon=True)
            for rank in range(N_RANKS)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(SECONDS)
            rank.kill()
        files = [folder / f"{rank}.pt" for rank in range(N_RANKS)]
        verdicts = [torch.load(file) if file.exists() else {} for file in files]
    ended = (WRONG, "a rank ended, or waited for another one")
    cells = []
    for name in names:
        own = [of_rank.get(name, ended) for of_rank in verdicts]
        word, said = max(own, key=lambda one: (RIGHT, REFUSED, WRONG).index(one[0]))
        cells.append(Cell(name, PARALLEL, word, said))
    return cells
