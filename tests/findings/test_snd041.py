import torch

from findings._evidence import digits, evidence_of, shuffled
from findings._nets import assert_raised
from sonde.core.stream import Stream
from sonde.findings.codes.snd041 import SND041
from sonde.findings.evidence.facts import data_evidence
from sonde.findings.evidence.inputs.unusual_rows import copies, rows_section


def test_two_per_cent_of_copies_are_a_warning_and_none_is_clear() -> None:
    x, label = digits()
    rows = torch.cat([torch.arange(1797), shuffled(1797)[:36]])
    evidence = evidence_of(x[rows], label=label[rows])
    check = SND041().check(evidence)
    finding = assert_raised(check, "warning")
    assert finding.sentence.startswith("36 of 1,833 inputs (2 %) are copies of earlier inputs")
    table = rows_section(evidence)["duplicates"]
    assert len(table) == 36
    assert all(entry["n"] == 2 and len(entry["labels"]) == 1 for entry in table)
    assert SND041().check(evidence_of(x, label=label)).state == "clear"


def test_one_copy_is_a_note_and_a_warning_with_another_label() -> None:
    x, label = digits()
    rows = torch.cat([torch.arange(1797), torch.tensor([5])])
    finding = assert_raised(SND041().check(evidence_of(x[rows], label=label[rows])), "note")
    assert "1 of 1,798 inputs" in finding.sentence
    other = label[rows].clone()
    other[-1] = 9 - other[-1]
    finding = assert_raised(SND041().check(evidence_of(x[rows], label=other)), "warning")
    assert "different labels" in finding.sentence


def test_arrays_are_compared_by_what_they_hold_also_where_ids_are_given() -> None:
    x = torch.arange(12.0).reshape(6, 2)
    x[4] = x[1]
    for rows in (x, {"a": x[:, :1], "b": x[:, 1:]}):
        facts = data_evidence(Stream.of(rows, ids=[f"row {i}" for i in range(6)]), "arrays")
        assert copies(facts).sets == ((1, 4),)
    # Rows that share a name are one example, such as the tokens of a text: they are no copies.
    tokens = Stream.of(x, ids=["a", "a", "a", "b", "b", "b"], position=[0, 1, 2, 0, 1, 2])
    assert data_evidence(tokens, "tokens").keys == tokens.who.keys


def test_rows_of_one_input_in_exported_arrays_are_no_copies_of_each_other() -> None:
    """Documents a, b and a again: three inputs, of which one is a copy."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    ids, position = [*"aaabbbaa"], [6, 3, 0, 0, 4, 9, 0, 3]
    facts = data_evidence(Stream.of(x, ids=ids, position=position), "arrays")
    assert copies(facts).sets == ((2, 6),)
    assert (copies(facts).n, copies(facts).n_extra) == (3, 1)
    assert facts.piece is not None
    assert facts.piece.tolist() == [2, 1, 0, 0, 1, 2, 0, 1]


def test_chunks_of_one_text_are_no_copies_of_each_other() -> None:
    x, _ = digits()
    keys = [bytes([i // 4]) for i in range(100)]
    piece = torch.arange(100) % 4
    facts = {"keys": keys, "piece": piece}
    assert copies(evidence_of(x[:100], facts=facts).data).n == 25
    assert SND041().check(evidence_of(x[:100], facts=facts)).state == "clear"
    whole = evidence_of(x[:100], facts={"keys": keys})
    assert copies(whole.data).n_extra == 75


def test_empty_inputs_are_named() -> None:
    from sonde.core.hashing import bytes_key

    x, _ = digits()
    keys = [bytes_key(b"" if i < 7 else str(i).encode()) for i in range(100)]
    check = SND041().check(evidence_of(x[:100], facts={"keys": keys}))
    assert check.finding is not None
    assert "7 inputs are empty" in check.finding.sentence
