"""Which items a limit keeps: a sample over the classes that stays as files are added."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sonde.core.inputs import Model
from sonde.data import open_inputs
from sonde.data.arrays import open_arrays

RECIPE = {"image_size": 2, "image_mean": 0.5, "image_std": 0.5}
SIZES = {"ant": 60, "bee": 24, "cat": 11, "dog": 5}


class Flat(torch.nn.Module):
    """Takes images as they are."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values.mean((2, 3))


def a_folder(path: Path) -> Path:
    for k, (name, n) in enumerate(SIZES.items()):
        (path / name).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (3, 2), 20 * k + i).save(path / name / f"{i:03d}.png")
    return path


def a_table(path: Path) -> Path:
    rows = [{"x": [k, i], "label": n} for k, (n, m) in enumerate(SIZES.items()) for i in range(m)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def images(path: Path, limit: int, seed: int = 0):
    return open_inputs(Model(Flat()), path, limit=limit, seed=seed, **RECIPE)


def places(inputs) -> set[str]:
    return {inputs.place(i) for i in range(len(inputs))}


@pytest.mark.truth("the share of each class in the folder")
def test_a_limit_over_a_folder_of_classes_is_a_sample_of_all_of_them(tmp_path):
    folder = a_folder(tmp_path / "own")
    inputs = images(folder, 20)
    assert Counter(p.split("/")[0] for p in places(inputs)) == dict(ant=12, bee=5, cat=2, dog=1)
    assert [inputs.place(i) for i in range(20)] == sorted(places(inputs))
    assert inputs.notes[0].startswith("20 of 100 items are read, sampled over the classes")
    assert places(images(folder, 20)) == places(inputs) != places(images(folder, 20, seed=1))
    assert len(images(folder, 100)) == len(images(folder, 200)) == 100


def test_files_that_are_added_move_few_others(tmp_path):
    folder = a_folder(tmp_path / "own")
    before = places(images(folder, 20))
    for i in range(4):
        Image.new("L", (3, 2), 200 + i).save(folder / "bee" / f"aa{i}.png")
    assert len(before - places(images(folder, 20))) <= 3


def test_tables_and_feature_arrays_sorted_by_label_are_sampled_too(tmp_path):
    net = Model(torch.nn.Linear(2, 4))
    table = open_inputs(net, a_table(tmp_path / "rows.jsonl"), limit=20)
    assert sorted(Counter(table.listing.label.tolist()).values()) == [1, 2, 5, 12]
    label = np.repeat(np.arange(4), list(SIZES.values()))
    np.savez(tmp_path / "x.npz", x=np.arange(100.0)[:, None], label=label)
    stream = open_arrays(tmp_path / "x.npz", limit=20)
    assert Counter(stream.label.tolist()) == {0: 12, 1: 5, 2: 2, 3: 1}
    assert torch.equal(stream.rows["x"][:, 0].long(), torch.from_numpy(stream.source_rows))
    assert stream.sample_of == 100


def test_without_labels_and_with_a_number_for_each_row_nothing_is_stratified(tmp_path):
    net, path = Model(torch.nn.Linear(2, 1)), tmp_path / "rows.jsonl"
    rows = [{"x": [0, i], "label": i / 7} for i in range(90)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert open_inputs(net, path, limit=10).listing.sample_of == 90
    path.write_text("".join(json.dumps({"x": row["x"]}) + "\n" for row in rows))
    assert open_inputs(net, path, limit=10).listing.row.tolist() == list(range(10))
    loader = torch.utils.data.TensorDataset(torch.rand(30, 2), torch.arange(30) % 3)
    assert open_inputs(net, loader, limit=10).listing.row.tolist() == list(range(10))
