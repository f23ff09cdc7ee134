"""A classifier that reads the ids of a tokenizer that is shifted by some tokens."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import sonde
from findings._writing import docstrings, plurals, spelled
from scan._plants_writing import stepped_tokenizer
from scan._zoo import quiet
from sonde.core.inputs import Model
from sonde.report._first_screen import cause_lines, first_finding


def learned(tokenizer: PreTrainedTokenizerFast) -> tuple[Model, list[int]]:
    """Train a classifier on labels that are a direction of the texts' mean embedding."""
    torch.manual_seed(0)
    table = spelled(plurals())
    sizes: dict[str, Any] = {"vocab_size": len(table), "hidden_size": 24, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    net = BertForSequenceClassification(config)
    net.bert.embeddings.word_embeddings.weight.data.copy_(table)
    net.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    read = tokenizer(list(docstrings()), padding=True, truncation=True, return_tensors="pt")
    ids, mask = read["input_ids"], read["attention_mask"]
    kept = (mask * (ids > 3))[..., None]
    mean = (table[ids] * kept).sum(1) / kept.sum(1).clamp(min=1)
    along = mean @ torch.randn(24, generator=torch.Generator().manual_seed(3))
    label = (along > along.median()).long()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3)
    for _ in range(300):
        k = torch.randint(len(label), (32,))
        net(input_ids=ids[k], attention_mask=mask[k], labels=label[k]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Model(net.eval(), tokenizer, config, "classifier", "classifier"), label.tolist()


@pytest.mark.slow
@pytest.mark.truth("a classifier with 98 % accuracy, whose tokenizer is then shifted by three ids")
def test_shifted_ids_come_first_on_the_first_screen() -> None:
    model, labels = learned(stepped_tokenizer(0, 64))
    rows = [{"text": t, "label": y} for t, y in zip(docstrings(), labels, strict=True)]
    healthy = sonde.scan(model, rows, settings=quiet(), long="truncate")
    assert healthy.json()["answers"]["value"] > 0.9
    assert "SND082" not in {f["code"] for f in healthy.findings}
    shifted = replace(model, processor=stepped_tokenizer(3, 64))
    report = sonde.scan(shifted, rows, settings=quiet(), long="truncate").json()
    assert report["answers"]["value"] < 0.7
    first = first_finding(report)
    assert first is not None
    assert first["code"] == "SND082", [f["code"] for f in report["findings"]]
    assert "same folder" in dict(cause_lines(report))["advice"]
