"""Texts as padded batches: chunks, positions, special tokens, pairs, chats, token lists."""

import json
from dataclasses import replace

import pytest
import torch

from narrow import present
from sonde.core import errors
from sonde.core.hashing import bytes_key
from sonde.data import load, open_inputs


def units(inputs):
    return list(inputs.batches(0, len(inputs)))


def by_order(inputs):
    """Return, for each example in order, its unpadded ids, first position, id and special mask."""
    found = {}
    for batch in units(inputs):
        ids = batch.kwargs["input_ids"]
        for row, order in enumerate(batch.order.tolist()):
            mask = batch.mask[row]
            special = None if batch.special is None else batch.special[row][mask].tolist()
            found[order] = (ids[row][mask].tolist(), int(batch.first[row]), batch.ids[row], special)
    return [found[i] for i in sorted(found)]


@pytest.mark.truth("bytes of the text")
def test_long_texts_become_chunks_of_one_group(gpt2):
    text = "0123456789abcdefghijklmnopqrstuvwxyz"
    inputs = open_inputs(load(gpt2), ["ab", text, "ab"])
    rows = by_order(inputs)
    assert [r[0] for r in rows] == [
        list(b"ab"),
        list(text[:16].encode()),
        list(text[16:32].encode()),
        list(text[32:].encode()),
        list(b"ab"),
    ]
    assert [r[1] for r in rows] == [0, 0, 16, 32, 0]
    assert rows[1][2] == rows[3][2] == bytes_key(text.encode()).hex()
    assert inputs.group_keys[1] == inputs.group_keys[3] == bytes_key(text.encode())
    assert inputs.listing.occurrence.tolist() == [0, 0, 0, 0, 1]
    assert inputs.grouped
    assert "1 of 3 texts is longer than the model's context and is cut into" in inputs.notes[0]
    (note,) = open_inputs(load(gpt2), [text], max_length=8, long="truncate").notes
    assert note == (
        "1 of 1 text was cut off at --max-length 8, or the model's context if that is shorter."
    )


@pytest.mark.truth("the tokenizer itself on texts that fit")
def test_special_tokens_stand_in_each_chunk(bert):
    model = load(bert)
    words = "a b c d e f g h cat dog sat on"
    rows = by_order(open_inputs(model, [words, "cat sat"], long="chunk"))
    tokens = model.processor(words, add_special_tokens=False)["input_ids"]
    assert [r[0] for r in rows[:2]] == [[2, *tokens[:6], 3], [2, *tokens[6:], 3]]
    assert [r[1] for r in rows[:2]] == [0, 8]
    assert rows[2][0] == model.processor("cat sat")["input_ids"]
    assert rows[2][3] == [True, False, False, True]


def test_unknown_words_are_not_special(bert):
    (row,) = by_order(open_inputs(load(bert), ["zebra cat"]))
    assert row[0] == [2, 1, 12, 3]
    assert row[3] == [True, False, False, True]


def test_padding_is_on_the_right_whatever_the_tokenizer_says(bert):
    model = load(bert)
    assert model.processor.padding_side == "left"
    (batch,) = units(open_inputs(model, ["a", "a b c"]))
    assert batch.kwargs["input_ids"].tolist() == [[2, 4, 3, 0, 0], [2, 4, 5, 6, 3]]
    assert batch.kwargs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert present(batch.mask).tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.columns["padding"].tolist() == [2, 0]
    assert batch.columns["length"].tolist() == [3, 5]
    assert present(batch.length).tolist() == [3, 5]
    assert batch.columns["size"].tolist() == [1, 5]


def test_a_unit_is_sorted_by_length_and_cut_the_same_way_each_time(gpt2):
    texts = ["x" * (1 + i * 7 % 15) + str(i % 10) for i in range(50)]
    inputs = open_inputs(load(gpt2), texts, batch_size=8)
    first, second = units(inputs), units(inputs)
    assert [len(b) for b in first] == [8] * 6 + [2]
    lengths = torch.cat([present(b.length) for b in first])
    assert torch.equal(lengths, lengths.sort().values)
    assert sorted(torch.cat([b.order for b in first]).tolist()) == list(range(50))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.kwargs["input_ids"], b.kwargs["input_ids"])
        assert a.ids == b.ids
    part = list(inputs.batches(10, 20))
    assert sorted(torch.cat([b.order for b in part]).tolist()) == list(range(10, 20))


def test_truncate_and_error(gpt2):
    inputs = open_inputs(load(gpt2), ["y" * 20, "z"], long="truncate")
    rows = by_order(inputs)
    assert [len(r[0]) for r in rows] == [16, 1]
    batches = {
        int(o): int(t)
        for b in units(inputs)
        for o, t in zip(b.order, present(b.truncated), strict=True)
    }
    assert batches == {0: 4, 1: 0}
    assert inputs.n_truncated == 1
    assert not inputs.grouped
    with pytest.raises(
        errors.InputError, match=r"item 0 .*20 tokens, but the model reads 16.*--long"
    ):
        open_inputs(load(gpt2), ["y" * 20], long="error")
    with pytest.raises(errors.InputError, match="expected long among auto, chunk"):
        open_inputs(load(gpt2), ["y"], long="cut")


def test_classifiers_and_embedding_models_truncate_and_others_cut_into_chunks(gpt2, bert):
    words, model = ["a b c d e f g h cat dog sat on", "cat sat"], load(bert)
    inputs = open_inputs(model, words)
    assert (len(inputs), inputs.n_truncated, inputs.grouped) == (2, 1, False)
    pooled = replace(model, task="encoder", reducer="mean")
    assert open_inputs(pooled, words).n_truncated == 1
    assert len(open_inputs(replace(model, task="encoder"), words)) == 3
    assert len(open_inputs(load(gpt2), ["y" * 20])) == 2


def test_max_length_is_at_most_the_context(gpt2, bert):
    assert [len(r[0]) for r in by_order(open_inputs(load(gpt2), ["y" * 20], max_length=8))] == [
        8,
        8,
        4,
    ]
    assert len(by_order(open_inputs(load(gpt2), ["y" * 20], max_length=99))[0][0]) == 16
    with pytest.raises(errors.InputError, match="no room for tokens other than 2 special"):
        open_inputs(load(bert), ["a"], max_length=2)


@pytest.mark.truth("transformers tokenizer on pairs")
def test_pairs_carry_token_types(bert, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"a": "cat", "b": "dog sat", "label": "good"}\n')
    model = load(bert)
    (batch,) = units(open_inputs(model, path, text_column="a,b"))
    expected = model.processor("cat", "dog sat")
    assert batch.kwargs["input_ids"][0].tolist() == expected["input_ids"]
    assert batch.kwargs["token_type_ids"][0].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.label.tolist() == [1]
    path.write_text(json.dumps({"a": "a b c d", "b": "e f g h"}) + "\n")
    with pytest.raises(errors.InputError, match="--long truncate"):
        open_inputs(model, path, text_column="a,b", long="chunk")
    cut = open_inputs(model, path, text_column="a,b")
    (batch,) = units(cut)
    assert batch.kwargs["input_ids"].shape == (1, 8)
    assert present(batch.truncated).tolist() == [3]


@pytest.mark.truth("rendering by hand")
def test_messages_go_through_the_chat_template(gpt2):
    model = load(gpt2)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    with pytest.raises(errors.InputError, match="no chat template"):
        open_inputs(model, [{"messages": chat}])
    model.processor.chat_template = (
        "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"
    )
    (row,) = by_order(open_inputs(model, [{"messages": chat, "prompt": "no"}]))
    assert bytes(row[0]) == b"<u>hi<a>yo"
    assert by_order(open_inputs(model, [chat])) == [row]


def test_token_rows_need_no_tokenizer(gpt2, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"input_ids": [5, 6, 7]}\n{"input_ids": [8], "attention_mask": [1]}\n')
    model = replace(load(gpt2), processor=None)
    inputs = open_inputs(model, path)
    assert [r[0] for r in by_order(inputs)] == [[5, 6, 7], [8]]
    assert units(inputs)[0].special is None
    assert [len(r[0]) for r in by_order(open_inputs(model, [list(range(40))]))] == [16, 16, 8]
    assert by_order(open_inputs(model, [torch.tensor([1, 2])]))[0][0] == [1, 2]
    with pytest.raises(errors.InputError, match=r"token ids in \[0, 256\)"):
        open_inputs(model, [[300]])
    with pytest.raises(errors.InputError, match="has no tokenizer"):
        open_inputs(model, ["text"])


@pytest.mark.truth("shift of the target by hand")
def test_the_decoder_reads_the_target_or_its_start_token(t5, tmp_path):
    model = load(t5)
    path = tmp_path / "s.jsonl"
    path.write_text('{"text": "cat", "out": "dog sat"}\n{"text": "a b", "out": "mat"}\n')
    inputs = open_inputs(model, path, target_column="out")
    (batch,) = units(inputs)
    start = model.config.decoder_start_token_id
    assert batch.kwargs["decoder_input_ids"].tolist() == [[start, 2, 13, 14], [start, 2, 17, 0]]
    assert present(batch.decoder_mask).tolist() == [[True] * 4, [True] * 3 + [False]]
    assert model.module(**batch.kwargs).logits.shape[:2] == (2, 4)
    plain = open_inputs(model, path, text_column="text")
    (batch,) = units(plain)
    assert batch.kwargs["decoder_input_ids"].tolist() == [[start], [start]]
    assert "only its start token" in plain.notes[0]


def test_a_target_needs_a_decoder(gpt2, tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"text": "cat", "out": "dog"}\n')
    with pytest.raises(errors.InputError, match="no decoder"):
        open_inputs(load(gpt2), path, text_column="text", target_column="out")


def test_an_empty_text_without_special_tokens_is_named(gpt2, bert):
    inputs = open_inputs(load(gpt2), ["a", "", "b", ""])
    assert (len(inputs), inputs.n_skipped) == (2, 2)
    assert any("2 items were skipped: item 1" in note for note in inputs.notes)
    with pytest.raises(errors.InputError, match=r"no item .2 broken or empty items"):
        open_inputs(load(gpt2), ["", ""])
    assert [r[0] for r in by_order(open_inputs(load(bert), [""]))] == [[2, 3]]


def test_texts_that_expand_under_normalisation_are_still_cut(bert):
    from tokenizers import normalizers

    model = load(bert)
    model.processor.backend_tokenizer.normalizer = normalizers.Replace("\ufdfa", "a b c d e f g h ")
    rows = by_order(open_inputs(model, ["\ufdfa"], long="chunk"))
    assert [len(r[0]) for r in rows] == [8, 4]


def test_a_tokenizer_of_another_model_is_named(gpt2, bert):
    wrong = replace(load(bert), processor=load(gpt2).processor)
    with pytest.raises(errors.InputError, match="belongs to the model"):
        units(open_inputs(wrong, ["xyz"]))


@pytest.mark.truth("the formula by hand")
def test_automatic_batch_size(gpt2):
    model = load(gpt2)
    assert open_inputs(model, ["a"]).batch_size == 64
    model.config.hidden_size = 2**20
    # one example: 16 tokens x 4 x 2^20 x 4 bytes = 2^28, so 4 of them fill 2^30
    assert open_inputs(model, ["a" * 30]).batch_size == 4
    model.config.vocab_size = 4 * 2**20
    assert open_inputs(model, ["a" * 30], logits=True).batch_size == 2
    assert open_inputs(model, ["a" * 30]).batch_size == 4


def test_two_texts_with_one_content_share_an_id_and_have_occurrences(gpt2):
    inputs = open_inputs(load(gpt2), ["a", "b", "a"])
    (batch,) = units(inputs)
    assert batch.ids[0] == batch.ids[2] != batch.ids[1]
    assert batch.occurrence.tolist() == [0, 0, 1]
    assert not inputs.grouped


def test_position_tables_with_a_padding_row_hold_less_than_they_say(bert):
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=10,
        pad_token_id=1,
    )
    model = load(RobertaModel(config), processor=load(bert).processor)
    inputs = open_inputs(model, ["a b c d e f g h cat dog"])
    rows = by_order(inputs)
    assert [len(r[0]) for r in rows] == [8, 6]
    for batch in units(inputs):
        model.module(**batch.kwargs)


def test_a_wrapped_model_still_gets_its_mask(gpt2):
    class Wrapper(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.base_model, self.config = model, model.config

        def forward(self, *args, **kwargs):
            return self.base_model(*args, **kwargs)

    model = load(gpt2)
    wrapped = load(Wrapper(model.module), processor=model.processor)
    (batch,) = units(open_inputs(wrapped, ["a", "abc"]))
    assert set(batch.kwargs) == {"input_ids", "attention_mask"}
    assert wrapped.module(**batch.kwargs).logits.shape == (2, 3, 256)


def test_a_decoder_that_classifies_without_a_padding_token_gets_batches_of_one(gpt2):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=256, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    model = load(GPT2ForSequenceClassification(config), processor=load(gpt2).processor)
    inputs = open_inputs(model, ["a", "abc"])
    assert inputs.batch_size == 1
    for batch in units(inputs):
        assert model.module(**batch.kwargs).logits.shape == (1, 2)


def test_lengths_are_known_where_texts_are_cut_off(gpt2):
    inputs = open_inputs(load(gpt2), ["abc", "y" * 20], long="truncate")
    assert inputs.listing.length.tolist() == [3, 16]
    assert inputs.listing.truncated.tolist() == [0, 4]


def test_models_without_a_limit_read_whole_texts(t5):
    (row,) = by_order(open_inputs(load(t5), ["a " * 3000]))
    assert len(row[0]) == 3002


def test_the_identity_names_what_shapes_the_batches(gpt2):
    model = load(gpt2)
    plain = open_inputs(model, ["a", "b"]).identity()
    assert plain == open_inputs(model, ["a", "b"]).identity()
    json.dumps(plain)
    others = [
        open_inputs(model, ["a", "c"]),
        open_inputs(model, ["b", "a"]),
        open_inputs(model, ["a", "b"], batch_size=2),
        open_inputs(model, ["a", "b"], max_length=5),
        open_inputs(model, ["a", "b"], long="truncate"),
        open_inputs(model, [("a", 1), ("b", 0)]),
    ]
    assert all(other.identity() != plain for other in others)
