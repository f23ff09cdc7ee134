"""Jobs on models that are sharded over two or four ranks, beside the whole model: right or refused.

    python -m tools.sharded_table             # the table of docs/howto/sharded_models.md
    python -m tools.sharded_table --errors    # the text of each refusal

Every rank runs each job on a small Llama that ``torch.distributed`` (gloo) shards in one way, and
compares the numbers with those of the same model in one process.
"""

import argparse
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

import sonde
from sonde.compress import RTN
from sonde.core import SondeError
from sonde.core.edit import Scale
from sonde.detect import Mahalanobis
from sonde.layers import Adapter
from sonde.measure import ParticipationRatio
from sonde.train import RateReduction

TOLERANCE, OF_BFLOAT16 = 1e-5, 1e-2
BLOCK, UNITS, ATTENTION = "model.layers.1", "model.layers.1.mlp.up_proj", "model.layers.1.self_attn"
WEIGHT = "layers.0.self_attn.q_proj.weight"
LENGTHS = torch.randint(4, 12, (60,), generator=torch.Generator().manual_seed(0)).tolist()
TEXTS = [
    {"id": f"text {i}", "input_ids": [(7 * i + 3 * j * j) % 47 + 3 for j in range(n)]}
    for i, n in enumerate(LENGTHS)
]
IDS = torch.tensor([text["input_ids"][:4] for text in TEXTS[:4]])

Job = Callable[[Any, Any], Tensor]
Build = Callable[[Any, Path], Any]


def llama() -> Any:
    """Return the whole model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: Any = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "vocab_size": 50,
    }
    heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, pad_token_id=2)).eval()


def read(sites: str, model: Any, probe: Any) -> Tensor:
    """Return the rows of a site."""
    stream = sonde.read(model, TEXTS, sites=sites, reducer="mean", batch_size=8)
    key = stream.schema[0].key
    return torch.cat([batch.rows[key] for batch in stream])


def fit(model: Any, probe: Any = None) -> sonde.Fitted:
    """Return methods that are fitted on the rows of a block."""
    stream = sonde.read(model, TEXTS, sites=BLOCK, reducer="mean", batch_size=8)
    return sonde.fit([Mahalanobis(), ParticipationRatio()], stream, progress=False)


def fitted(model: Any, probe: Any) -> Tensor:
    """Return a fitted number, and whether the file names the model of the whole one."""
    own = fit(model)
    same = own.header["model"]["model"] == probe.header["model"]["model"]
    return torch.tensor([own.result("participation_ratio").value, float(same)])


def score(model: Any, probe: Any) -> Tensor:
    """Return the scores of a probe that was fitted on the whole model."""
    table = sonde.score(probe, model, TEXTS, progress=False)
    return torch.tensor(table.column("score").to_pylist())


def guard(model: Any, probe: Any) -> Tensor:
    """Return the p-values of a guard around a call."""
    with sonde.Guard(model, probe, alpha=None) as watching, torch.no_grad():
        model(input_ids=IDS)
    return torch.cat([torch.as_tensor(p).double() for p in watching.p_values.values()])


def edit(site: str, model: Any, probe: Any) -> Tensor:
    """Return the logits with an edited site."""
    with sonde.editing(model, Scale(2.0), site), torch.no_grad():
        return model(input_ids=IDS).logits


def loss(model: Any, probe: Any) -> Tensor:
    """Return a loss of the rows of a block, and the gradient of an earlier weight."""
    with sonde.training(model, {BLOCK: RateReduction()}, reducer="mean") as terms:
        model.train()
        logits = model(input_ids=IDS).logits
        total = 0.0 * logits.sum() + terms.loss(label=torch.tensor([0, 1, 0, 1]))
        model.zero_grad()
        total.backward()
    model.eval()
    names = {n.replace("_checkpoint_wrapped_module.", ""): p for n, p in model.named_parameters()}
    (weight,) = [p for n, p in names.items() if n.endswith(WEIGHT)]
    own: Any = weight.grad
    gradient = own.full_tensor() if type(own).__name__ == "DTensor" else own
    return torch.cat([total.detach()[None], gradient.flatten()])


def gradient(model: Any, probe: Any) -> Tensor:
    """Return the gradient of the largest logit at a block."""
    options: Any = {"sites": BLOCK, "reducer": "mean", "batch_size": 8, "objective": "max_logit"}
    return torch.cat([b.grad[f"{BLOCK}:out"] for b in sonde.read(model, TEXTS[:8], **options)])


def generate(model: Any, probe: Any) -> Tensor:
    """Return the rows of texts that the model goes on with."""
    options: Any = {"sites": BLOCK, "reducer": "last", "generate": {"max_new_tokens": 4}}
    return torch.cat([b.rows[f"{BLOCK}:out"] for b in sonde.read(model, TEXTS[:8], **options)])


def insert(model: Any, probe: Any) -> Tensor:
    """Return the logits of a copy with an inserted layer."""
    with torch.no_grad():
        return sonde.inserted(model, {BLOCK: Adapter(16, 2)})(input_ids=IDS).logits


def compress(model: Any, probe: Any) -> Tensor:
    """Return the number of weights that a plan rounds."""
    return torch.tensor([float(len(RTN().plan(model).changes))])


JOBS: dict[str, Job] = {
    "read a block": partial(read, BLOCK),
    "read units of an MLP": partial(read, UNITS),
    "read heads": partial(read, f"{ATTENTION}:heads"),
    "fit": fitted,
    "score": score,
    "guard": guard,
    "edit a block": partial(edit, BLOCK),
    "edit units of an MLP": partial(edit, UNITS),
    "loss of `sonde.training`": loss,
    "gradient at a block": gradient,
    "read generated text": generate,
    "insert a layer": insert,
    "compress": compress,
}


def whole(mesh: Any, folder: Path) -> Any:
    """Return the model of ``DistributedDataParallel``."""
    return nn.parallel.DistributedDataParallel(llama())


def fully_sharded(mesh: Any, folder: Path, dtype: torch.dtype | None = None) -> Any:
    """Return a model whose blocks ``fully_shard`` shards."""
    return sharded_blocks(llama(), mesh, dtype)


def sharded_blocks(model: Any, mesh: Any, dtype: torch.dtype | None = None) -> Any:
    """Return a model after ``fully_shard`` of its blocks and of the rest."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=dtype)
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def checkpointed(mesh: Any, folder: Path) -> Any:
    """Return a fully sharded model whose blocks are computed again in the backward pass."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.fsdp import fully_shard

    model = llama()
    for i, block in enumerate(model.model.layers):
        model.model.layers[i] = fully_shard(checkpoint_wrapper(block), mesh=mesh)
    return fully_shard(model, mesh=mesh)


def parallelized(mesh: Any, folder: Path) -> Any:
    """Return a model whose layers ``parallelize_module`` splits."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model, columns = llama(), ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            names = [name for name, _ in part.named_children() if name.endswith("_proj")]
            plan: Any = {n: (ColwiseParallel if n in columns else RowwiseParallel)() for n in names}
            parallelize_module(part, mesh, plan)
    return model


def both_ways(mesh: Any, folder: Path) -> Any:
    """Return a model whose layers are split, and their parts sharded by ``fully_shard``."""
    return sharded_blocks(parallelized(mesh["split"], folder), mesh["shard"])


def automatic(mesh: Any, folder: Path) -> Any:
    """Return a model that transformers splits by its own plan."""
    from transformers import LlamaForCausalLM
    from transformers.distributed.configuration_utils import DistributedConfig

    plan = DistributedConfig(tp_plan="auto", tp_size=distributed.get_world_size())
    return LlamaForCausalLM.from_pretrained(folder / "llama", distributed_config=plan).eval()


def flattened(mesh: Any, folder: Path) -> Any:
    """Return a model of ``FullyShardedDataParallel``, which is older than ``fully_shard``."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(llama(), device_id=torch.device("cpu"))


def stage(mesh: Any, folder: Path) -> Any:
    """Return this rank's stage of a pipeline."""
    from torch.distributed.pipelining import PipelineStage

    return PipelineStage(
        llama(), distributed.get_rank(), distributed.get_world_size(), torch.device("cpu")
    )


@dataclass(frozen=True)
class Kind:
    """A way to shard a model.

    Parameters
    ----------
    build : callable
        Returns the model on one rank, from a device mesh and a folder with the whole model.
    axes : dict of str to int
        Sizes of the axes of the device mesh, by name.
    """

    build: Build
    axes: dict[str, int] = field(default_factory=lambda: {"ranks": 2})

    @property
    def n_ranks(self) -> int:
        """Number of ranks."""
        return prod(self.axes.values())


KINDS: dict[str, Kind] = {
    "`DistributedDataParallel`": Kind(whole),
    "`fully_shard`": Kind(fully_sharded),
    "`fully_shard`, bfloat16": Kind(partial(fully_sharded, dtype=torch.bfloat16)),
    "`fully_shard`, checkpointing": Kind(checkpointed),
    "`fully_shard`, two replicas": Kind(fully_sharded, {"replicate": 2, "shard": 2}),
    '`tp_plan="auto"`': Kind(automatic),
    "`parallelize_module`": Kind(parallelized),
    "`parallelize_module` and `fully_shard`": Kind(both_ways, {"shard": 2, "split": 2}),
    "`FullyShardedDataParallel`": Kind(flattened),
    "`PipelineStage`": Kind(stage),
}


def verdict(job: Job, model: Any, probe: Any, expected: Tensor, tolerance: float) -> str:
    """Return whether a job gives the numbers of the whole model, or how it is refused."""
    try:
        numbers = job(model, probe).detach()
    except SondeError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {error}"
    if numbers.shape != expected.shape:
        return f"WRONG: {tuple(numbers.shape)} in place of {tuple(expected.shape)}"
    gap = float((numbers - expected).abs().max() / expected.abs().max())
    return f"right: {gap:.0e}" if gap <= tolerance else f"WRONG: {gap:.1e}"


def expected_numbers(model: Any) -> tuple[sonde.Fitted, dict[str, Tensor]]:
    """Return a probe of the whole model, and the numbers of each job on the model."""
    probe = fit(model)
    return probe, {name: job(model, probe).detach() for name, job in JOBS.items()}


def in_rank(rank: int, n_ranks: int, folder: Path, kinds: list[str]) -> None:
    """Write the verdicts of one rank."""
    from torch.distributed.device_mesh import init_device_mesh

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_ranks)}
    meet = f"file://{folder}/meet{n_ranks}"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=n_ranks)
    float32, bfloat16 = expected_numbers(llama()), expected_numbers(llama().bfloat16())
    verdicts: dict[str, dict[str, str]] = {}
    for kind in kinds:
        axes = KINDS[kind].axes
        mesh = init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes))
        model, is_narrow = KINDS[kind].build(mesh, folder), "bfloat16" in kind
        probe, expected = bfloat16 if is_narrow else float32
        probe = fit(model) if is_narrow else probe  # of its own weights, which are float32
        tolerance = OF_BFLOAT16 if is_narrow else TOLERANCE
        run = partial(verdict, model=model, probe=probe, tolerance=tolerance)
        verdicts[kind] = {name: run(job, expected=expected[name]) for name, job in JOBS.items()}
    torch.save(verdicts, folder / f"{rank} of {n_ranks}.pt")
    distributed.destroy_process_group()


def table(kinds: list[str]) -> list[dict[str, dict[str, str]]]:
    """Return the verdicts of each rank, by kind and job; all kinds have as many ranks."""
    context = multiprocessing.get_context("spawn")
    (n_ranks,) = {KINDS[kind].n_ranks for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="sonde-") as name:
        folder = Path(name)
        llama().save_pretrained(folder / "llama")
        ranks = [
            context.Process(target=in_rank, args=(r, n_ranks, folder, kinds), daemon=True)
            for r in range(n_ranks)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(180)
        return [torch.load(folder / f"{rank} of {n_ranks}.pt") for rank in range(n_ranks)]


def markdown(verdicts: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table of a page: one column for each kind of sharding."""
    lines = ["| " + " | ".join(["", *verdicts]) + " |", "|---" * (len(verdicts) + 1) + "|"]
    for job in JOBS:
        words = [verdicts[kind][job].split(":")[0] for kind in verdicts]
        lines.append("| " + " | ".join([job, *words]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--errors", action="store_true", help="print each verdict in full")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), help="columns that are run")
    arguments = parser.parse_args()
    several = [kind for kind in KINDS if kind in arguments.only] if arguments.only else list(KINDS)
    by_size = {n: [k for k in several if KINDS[k].n_ranks == n] for n in (2, 4)}
    tables = [table(kinds) for kinds in by_size.values() if kinds]
    first = {kind: verdicts for ranks in tables for kind, verdicts in ranks[0].items()}
    print(markdown({kind: first[kind] for kind in several}))
    if arguments.errors:
        for rank, kind, job, text in every(tables):
            print(f"rank {rank}, {kind}, {job}: {text}")


def every(tables: list[list[dict[str, dict[str, str]]]]) -> Iterator[tuple[int, str, str, str]]:
    """Yield each verdict with its rank, kind and job."""
    for ranks in tables:
        for rank, kinds in enumerate(ranks):
            for kind, jobs in kinds.items():
                for job, text in jobs.items():
                    yield rank, kind, job, text


if __name__ == "__main__":
    main()
