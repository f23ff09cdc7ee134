"""Faults of tables, regressions and sounds."""

# ruff: noqa: E501 (a fault reads as a line of a table)

from pathlib import Path

import numpy as np
import torch
from tools.field.planting import Fault, on_arrays, on_table, on_weights
from torch import Tensor

Tensors = dict[str, Tensor]
Draw = np.random.Generator


def _sentinel(head: list[str], rows: np.ndarray, draw: Draw) -> None:
    for name in ("worst_concavity", "mean_texture"):
        rows[draw.random(len(rows)) < 0.15, head.index(name)] = 9999


def _inches(head: list[str], rows: np.ndarray, _: Draw) -> None:
    rows[:, head.index("worst_perimeter")] /= 25.4


def _two_columns(head: list[str], rows: np.ndarray, _: Draw) -> None:
    a, b = head.index("mean_radius"), head.index("worst_texture")
    rows[:, [a, b]] = rows[:, [b, a]]


def _stuck(head: list[str], rows: np.ndarray, _: Draw) -> None:
    rows[:, head.index("worst_concave_points")] = 0.4


def _two_labs(head: list[str], rows: np.ndarray, _: Draw) -> None:
    rows[190:, head.index("mean_area")] *= 1000


def _reversed_columns(_: list[str], rows: np.ndarray, __: Draw) -> None:
    rows[:, :-1] = rows[:, -2::-1].copy()


def _wrong_labels(_: list[str], rows: np.ndarray, draw: Draw) -> None:
    wrong = draw.random(len(rows)) < 0.1
    rows[wrong, -1] = 1 - rows[wrong, -1]


def _gaps(head: list[str], rows: np.ndarray, draw: Draw) -> None:
    rows[draw.random(len(rows)) < 0.05, head.index("area_error")] = np.nan


def _unscaled(tensors: Tensors) -> None:
    tensors["mean"].zero_()
    tensors["spread"].fill_(1.0)


def _label_numbers(_: list[str], rows: np.ndarray, __: Draw) -> None:
    rows[:, -1] = (rows[:, -1] + 1) % 3


def _exchanged_answers(tensors: Tensors) -> None:
    for name in ("head.weight", "head.bias"):
        tensors[name] = tensors[name][[0, 2, 1]]


def _drawn_hidden(tensors: Tensors) -> None:
    draw = torch.Generator().manual_seed(8)
    tensors["layers.2.weight"] = (torch.rand(32, 32, generator=draw) * 2 - 1) / 32**0.5


def _logarithm(head: list[str], rows: np.ndarray, _: Draw) -> None:
    at = head.index("proline")
    rows[:, at] = np.log10(rows[:, at])


def _square_centimetres(_: list[str], rows: np.ndarray, __: Draw) -> None:
    rows[:, -1] /= 100


def _log_target(_: list[str], rows: np.ndarray, __: Draw) -> None:
    rows[:, -1] = np.log(rows[:, -1])


def _typos(_: list[str], rows: np.ndarray, draw: Draw) -> None:
    rows[draw.random(len(rows)) < 0.03, -1] *= 100


def _tenfold(head: list[str], rows: np.ndarray, _: Draw) -> None:
    rows[:, head.index("mean_radius")] *= 10


def _age_and_sugar(head: list[str], rows: np.ndarray, _: Draw) -> None:
    a, b = head.index("bmi"), head.index("bp")
    rows[:, [a, b]] = rows[:, [b, a]]


def _half_shuffled(_: list[str], rows: np.ndarray, draw: Draw) -> None:
    rows[110:, -1] = draw.permutation(rows[110:, -1])


def _silent(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x[::4] = 0
    return x, y


def _drawn_lstm(tensors: Tensors) -> None:
    draw = torch.Generator().manual_seed(9)
    for name in ("lstm.weight_ih_l1", "lstm.weight_hh_l1"):
        tensors[name] = (torch.rand(tensors[name].shape, generator=draw) * 2 - 1) / 16


def _resampled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.linspace(0, 680, 1024)  # 24 kHz taken for 16 kHz
    return np.stack([np.interp(at, np.arange(1024), row) for row in x]).astype(np.float32), y


def _offset(place: Path) -> None:
    on_weights(_add_offset)(place)


def _add_offset(tensors: Tensors) -> None:
    tensors["head.bias"] += 0.8


TABLES = (
    Fault("sentinel", "tumours", "9999 stands for missing values in two columns",
          r"9,?999|sentinel", on_table(_sentinel)),
    Fault("inches", "tumours", "worst_perimeter is in another unit", r"worst_perimeter", on_table(_inches)),
    Fault("two-columns", "tumours", "mean_radius and worst_texture are exchanged",
          r"(?=.*mean_radius)(?=.*worst_texture)", on_table(_two_columns)),
    Fault("stuck", "tumours", "worst_concave_points is constant",
          r"worst_concave_points", on_table(_stuck)),
    Fault("two-labs", "tumours", "from row 190 on mean_area is a thousand times larger",
          r"mean_area", on_table(_two_labs)),
    Fault("reversed-columns", "tumours", "the columns are in reverse order",
          r"reversed?|mirror|order|permute|permutation|columns? .*(exchang|moved)", on_table(_reversed_columns)),
    Fault("wrong-labels", "tumours", "10 % of labels are wrong",
          r"labels?.*(wrong|doubt|mislabel|suspect|disagree)|mislabel|wrong label", on_table(_wrong_labels)),
    Fault("gaps", "tumours", "5 % of area_error is missing", r"missing|\bNaN|not finite|non-?finite|empty|area_error",
          on_table(_gaps)),
    Fault("unscaled", "tumours", "the net has lost mean and spread of its columns",
          r"standardi|scale|mean 0|variance 1|normali", on_weights(_unscaled)),
    Fault("label-numbers", "wines", "classes are numbered in another order",
          r"order|permute|permutation|number|exchang", on_table(_label_numbers)),
    Fault("logarithm", "wines", "proline is given as its logarithm",
          r"proline", on_table(_logarithm)),
)  # fmt: skip

REGRESSIONS = (
    Fault("other-unit", "areas", "targets are a hundred times smaller", r"\b100\b|0\.01|factor|unit|scale",
          on_table(_square_centimetres)),
    Fault("log-target", "areas", "targets are logarithms", r"\blog|\bexp", on_table(_log_target)),
    Fault("tenfold-column", "areas", "mean_radius is ten times larger", r"mean_radius", on_table(_tenfold)),
    Fault("constant-off", "areas", "all answers are too large by a constant",
          r"offset|constant|bias|too (large|high)|subtract|\badd|[-+] ?\d+", _offset),
    Fault("bmi-and-pressure", "diabetes", "bmi and bp are exchanged",
          r"(?=.*\bbmi\b)(?=.*\bbp\b)", on_table(_age_and_sugar)),
    Fault("half-shuffled", "diabetes", "from row 110 on targets belong to other rows",
          r"from (row|item|line).*1[01]\d|shuffl|slip|other rows|join", on_table(_half_shuffled)),
)  # fmt: skip

SOUNDS = (
    Fault("decibels", "voices", "mel bands are in decibels, not power", r"\blog|\bexp|decibel|\bdB\b|power",
          on_arrays(lambda x, y: (10 * np.log10(x + 1e-9).astype(np.float32), y))),
    Fault("backwards", "voices", "recordings run backwards", r"reversed?|backward|order (of|in) (time|frames|rows|positions)|mirror|turned",
          on_arrays(lambda x, y: (x[:, ::-1].copy(), y))),
    Fault("silent-quarter", "voices", "a quarter of the recordings is silent",
          r"silent|silence|constant|zero|identical|duplicate|copies|same input", on_arrays(_silent)),
    Fault("drawn-lstm", "voices", "the second layer of the LSTM has random weights",
          r"lstm.*(random|initial|drawn|untrained|never trained)|(random|initial|drawn|untrained|never trained).*lstm",
          on_weights(_drawn_lstm)),
    Fault("sixteen-bits", "notes", "samples are 16-bit numbers, not of unit spread",
          r"scale|divid|32,?768|range|standardi|mean 0|variance", on_arrays(lambda x, y: (x * np.float32(6000), y))),
    Fault("other-rate", "notes", "all answers are seven semitones off: another sampling rate",
          r"shift|moved|offset|sampling rate|semitone|permute|permutation", on_arrays(_resampled)),
)  # fmt: skip
