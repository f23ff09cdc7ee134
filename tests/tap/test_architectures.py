"""Fourteen tiny architectures: default sites, reducers, axes, row counts, and exact states."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import ARCHITECTURES, Architecture, model_of
from narrow import expect
from sonde.tap import LiveStream, live_stream
from tap_inputs import Arrays, inputs_for

GOLDEN = Path(__file__).with_name("golden_architectures.txt")


def stream_of(architecture: Architecture, **options) -> LiveStream:
    inputs = inputs_for(architecture.takes)
    if architecture.name == "resnet18":
        inputs = replace(expect(Arrays, inputs), keyword=None)
    return live_stream(model_of(architecture), inputs, **options)


def described(architecture: Architecture) -> str:
    stream = stream_of(architecture, further=("tokens", "patches"))
    batches = list(stream.batches(0, 5))
    lines = [f"{architecture.name}  task={architecture.task}  inputs={architecture.takes}"]
    for s in stream.schema:
        counts = "+".join(str(len(b.rows[s.key])) for b in batches)
        lines.append(f"  {s.key:44} {s.module:26} {s.axes:14} {s.reducer!s:8} {counts} x {s.dim}")
    logits = batches[0].logits
    lines.append(f"  logits {'none' if logits is None else tuple(logits.shape)}")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.truth("axes and counts derived by hand from each configuration")
def test_golden_table_of_architectures():
    found = "\n\n".join(described(a) for a in ARCHITECTURES) + "\n"
    assert found == GOLDEN.read_text(), "write the new table only after checking it by hand"


def cloned(stream: LiveStream, batch) -> dict[str, list[Tensor]]:
    """What a plain hook that clones the first tensor of each output sees."""
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for path in {s.site.path for s in stream.schema}:
        seen[path] = []

        def keep(module, args, output, path=path):
            first = output if isinstance(output, Tensor) else output[0]
            seen[path].append(first.detach().clone())

        module = stream.model.module.get_submodule(path)
        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        stream.model.module(*batch.args, **batch.kwargs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@pytest.mark.truth("a plain hook that clones, reduced by indexing here")
def test_states_are_bit_equal_to_a_cloning_hook(architecture):
    reducer = "tokens" if architecture.takes in ("text", "pair") else "patches"
    stream = stream_of(architecture, reducer=reducer, keep_special=True)
    raw = next(stream.inputs.batches(0, 4))
    rows = next(iter(stream.batches(0, 4))).rows
    assert rows
    for schema in stream.schema:
        whole = cloned(stream, raw)[schema.site.path][expect(int, schema.site.call or 0)]
        if whole.ndim == 4:
            expected = torch.stack([whole[:, :, i, j] for i, j in _cells(whole)], dim=1)
        elif reducer == "tokens":
            mask = raw.decoder_mask if "pos2" in schema.axes else raw.mask
            expected = whole[mask][None]
        else:
            n_prefix = {"vit": 1, "dinov2": 5}.get(architecture.name, 0)
            expected = whole[:, n_prefix:]
        assert torch.equal(rows[schema.key], expected.reshape(-1, schema.dim)), schema.key


def _cells(x: Tensor) -> list[tuple[int, int]]:
    return [(i, j) for i in range(x.shape[2]) for j in range(x.shape[3])]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@pytest.mark.truth("mean, last and first token written as loops over examples")
def test_pooled_rows_equal_loops_over_examples(architecture):
    stream = stream_of(architecture)
    raw = next(stream.inputs.batches(0, 4))
    rows = next(iter(stream.batches(0, 4))).rows
    for schema in stream.schema:
        call = expect(int, schema.site.call or 0)
        whole = cloned(stream, raw)[schema.site.path][call].double()
        expected = torch.stack([_pooled(x, schema, raw, i) for i, x in enumerate(whole)])
        torch.testing.assert_close(rows[schema.key].double(), expected, rtol=1e-5, atol=1e-6)


def _pooled(x: Tensor, schema, raw, i: int) -> Tensor:
    if x.ndim == 3:
        return x.mean(dim=(1, 2))
    if "patch" in schema.axes:
        return x[0] if schema.reducer.name == "cls" else x.mean(dim=0)
    if "pos2" in schema.axes:
        return x[raw.decoder_mask[i]].mean(dim=0)
    if schema.reducer.name == "mean":
        return x[raw.mask[i] & ~raw.special[i]].mean(dim=0)
    real = x[raw.mask[i]]
    return real[-1] if schema.reducer.name == "last" else real[0]
