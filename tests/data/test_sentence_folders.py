"""Folders of sentence-transformers, read as that library runs them: against plain torch."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    MPNetConfig,
    MPNetModel,
)

import sonde
from sonde.compress import RTN
from sonde.core.errors import InputError, SondeWarning
from sonde.data import load, similarity_to
from sonde.explain import Objective, Saliency
from sonde.weights import LowRank, RewritePlan, save_edited
from sonde.weights.factory_folder import check_change

TEXTS = ["cat", "the cat sat on the mat", "a dog", "b c d e", "dog on mat on cat"]
SWITCHES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens")
SWITCHES = (*SWITCHES, "weightedmean_tokens", "lasttoken")
PADDED: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
SIZES: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"vocab_size": 18, "intermediate_size": 12}


@pytest.fixture(scope="module")
def words(bert):
    """Return a tokenizer of words with [CLS] and [SEP]."""
    return AutoTokenizer.from_pretrained(bert, padding_side="right")


def write(path, words, module, pooling, stages=(), weights="", **said):
    """Write a folder: the transformer, its pooling and further (class, configuration, tensors)."""
    module.save_pretrained(path / weights)
    words.save_pretrained(path / weights)
    rows = [("Transformer", weights), ("Pooling", "1_Pooling")]
    every = [("Pooling", pooling, {}), *stages]
    rows += [(kind, f"{i}_{kind}") for i, (kind, _, _) in enumerate(stages, 2)]
    for (kind, place), (_, config, tensors) in zip(rows[1:], every, strict=True):
        (path / place).mkdir()
        if config:
            (path / place / "config.json").write_text(json.dumps(config))
        if tensors:
            save_file(tensors, path / place / "model.safetensors")
        assert kind in place
    listed = [{"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{k}"}
              for i, (k, place) in enumerate(rows)]  # fmt: skip
    (path / "modules.json").write_text(json.dumps(listed))
    (path / weights / "sentence_bert_config.json").write_text(json.dumps(said))
    return path


def by_text(rows, batch):
    found = torch.empty_like(rows)
    found[batch.order] = rows
    return found


def read_rows(model, texts=TEXTS, **options):
    (batch,) = sonde.read(model, texts, **options)
    return {key: by_text(rows, batch).detach() for key, rows in batch.rows.items()}


@torch.no_grad()
def states_of(module, words, texts=TEXTS):
    """Return the last states of each text alone: nothing is padded."""
    ids = [torch.tensor([words(text)["input_ids"]]) for text in texts]
    return [module.eval()(input_ids=i).last_hidden_state[0] for i in ids]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, words):
    """Mean, a linear layer with tanh, unit length: switches as older versions wrote them."""
    torch.manual_seed(3)
    module = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
    dense = {"linear.weight": torch.randn(5, 8), "linear.bias": torch.randn(5)}
    config = {"in_features": 8, "out_features": 5, "bias": True}
    config["activation_function"] = "torch.nn.modules.activation.Tanh"
    pooling: dict[str, Any] = {f"pooling_mode_{m}": m == "mean_tokens" for m in SWITCHES}
    pooling |= {"word_embedding_dimension": 8}
    stages = [("Dense", config, dense), ("Normalize", {}, {})]
    path = tmp_path_factory.mktemp("averaged")
    return write(path, words, module, pooling, stages, max_seq_length=9), module, dense


@pytest.mark.truth("states of each text alone by transformers, mean and tanh in plain torch")
def test_mean_dense_and_unit_length_are_those_of_the_folder(averaged, words):
    path, module, dense = averaged
    rows = read_rows(str(path))
    last = states_of(module, words)
    mean = torch.stack([x.mean(0) for x in last])
    y = torch.tanh(mean @ dense["linear.weight"].T + dense["linear.bias"])
    torch.testing.assert_close(rows["model.encoder.layer.1:out"], mean)
    torch.testing.assert_close(rows["normalize:out"], y / y.norm(dim=1, keepdim=True))
    assert [*rows] == [*(f"model.encoder.layer.{i}:out" for i in (0, 1)), "normalize:out"]


def test_a_module_and_its_folder_are_read_alike(averaged):
    model = load(str(averaged[0]))
    live = read_rows(sonde.load(model.module, processor=model.processor))
    assert all(torch.equal(x, live[key]) for key, x in read_rows(model).items())
    assert model.processor.model_max_length == 9


@pytest.mark.truth("each way of pooling by its definition, on each text alone")
def test_all_ways_of_pooling_side_by_side(tmp_path, words):
    torch.manual_seed(4)
    module = MPNetModel(MPNetConfig(**SIZES), add_pooling_layer=False)
    modes = ["lasttoken", "mean_sqrt_len_tokens", "max", "weightedmean", "cls"]
    norm = {"norm.weight": torch.randn(40), "norm.bias": torch.randn(40)}
    stages = [("LayerNorm", {"dimension": 40}, norm), ("Dropout", {"dropout": 0.3}, {})]
    write(tmp_path, words, module, {"pooling_mode": modes}, stages, weights="0_Transformer")
    found = read_rows(str(tmp_path))["norm:out"]
    pooled = []
    for x in states_of(module, words):
        place = torch.arange(1.0, len(x) + 1)
        ways = (x[-1], x.sum(0) / len(x) ** 0.5, x.amax(0), place @ x / place.sum(), x[0])
        pooled.append(torch.cat(ways))
    expected = nn.functional.layer_norm(
        torch.stack(pooled), (40,), norm["norm.weight"], norm["norm.bias"]
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.truth("the last state of each text alone")
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_is_pooled_at_its_last_token(tmp_path, words, side):
    torch.manual_seed(5)
    module = LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=1, pad_token_id=0))
    path = write(tmp_path, words, module, {"pooling_mode": "lasttoken"})
    model = load(str(path))
    model.processor.padding_side = side
    rows = read_rows(model)
    expected = torch.stack([x[-1] for x in states_of(module, words)])
    torch.testing.assert_close(rows["pooling:out"], expected)
    assert model.task == "encoder"
    assert model.reducer == "last"


def test_lower_case_and_a_prompt_are_not_passed_over(words, tmp_path):
    module = BertModel(BertConfig(**SIZES))
    path = write(tmp_path, words, module, {"pooling_mode": "cls"}, do_lower_case=True)
    said = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(said))
    with pytest.warns(SondeWarning, match="'query: '"):
        model = load(str(path))
    upper, lower = (read_rows(model, [text])["pooling:out"] for text in ("The CAT", "the cat"))
    assert torch.equal(upper, lower)


def test_a_stage_that_is_not_known_is_refused(averaged, words, tmp_path):
    module = BertModel(BertConfig(**SIZES))
    path = write(tmp_path, words, module, {"pooling_mode": "cls"}, [("WordWeights", {}, {})])
    with pytest.raises(InputError, match="Transformer, Pooling, WordWeights"):
        load(str(path))
    file = path / "1_Pooling" / "config.json"
    (path / "modules.json").write_text(
        (averaged[0] / "modules.json").read_text().split(", {")[0] + "]"
    )
    with pytest.raises(InputError, match="lists the stages Transformer:"):
        load(str(path))
    (path / "modules.json").unlink()
    assert file.is_file()
    assert load(str(path)).reducer == "auto"


def test_an_edited_folder_keeps_its_stages(averaged, tmp_path):
    model = load(str(averaged[0]))
    weight = "model.encoder.layer.0.output.dense.weight"
    assert weight in model.module.state_dict()
    plan = RewritePlan.of(model, {weight: LowRank(torch.randn(8, 1), torch.ones(1, 12))})
    save_edited(model, plan, tmp_path / "new")
    again = read_rows(str(tmp_path / "new"))
    old = read_rows(str(averaged[0]))
    assert not torch.allclose(again["normalize:out"], old["normalize:out"], atol=1e-3)
    assert (tmp_path / "new" / "2_Dense" / "model.safetensors").is_file()


@pytest.mark.truth("cosine of the vectors of texts alone, and its gradient by autograd")
def test_how_near_a_text_is_can_be_explained(averaged):
    model = load(str(averaged[0]))
    near = similarity_to(model, "the dog")
    fed = dict(model.processor([TEXTS[1]], return_tensors="pt"))
    found = Saliency().explain(near, fed, objective=Objective())
    vectors = read_rows(model, ["the dog", TEXTS[1]])["normalize:out"]
    torch.testing.assert_close(found.objective.float(), (vectors[:1] @ vectors[1:].T)[0])
    assert found.by_place.shape == (1, 8)
    assert bool((found.by_place != 0).all())
    with pytest.raises(InputError, match=r"no most likely class.*--target TEXT"):
        Saliency().explain(model, fed)
    with pytest.raises(InputError, match="expected a folder of sentence-transformers"):
        similarity_to(sonde.Model(averaged[1]), "cat")


def vectors(module, fed):
    with torch.no_grad():
        return module(**fed)["sentence_embedding"]


def test_a_packed_folder_opens_as_the_model_that_was_folded(averaged, tmp_path):
    model = load(str(averaged[0]))
    plan = RTN(bits=2, group=4).plan(model)
    check_change(model, tmp_path / "new")
    saved = plan.save(model, tmp_path / "new")
    config = json.loads((saved.folder / "config.json").read_text())
    names = [*config["quantization_config"]["layers"]]
    assert names
    assert all(name.startswith("encoder.") for name in names)
    again, fed = load(str(saved.folder)), dict(model.processor(TEXTS, **PADDED))
    found = vectors(again.module, fed)
    torch.testing.assert_close(found, vectors(plan.fold(model), fed))
    assert float((found - vectors(model.module, fed)).abs().max()) > 1e-4
    inner = BertModel.from_pretrained(saved.folder, add_pooling_layer=False)
    transformer: Any = again.module.model
    states = transformer(**fed).last_hidden_state
    torch.testing.assert_close(inner(**fed).last_hidden_state, states)
    moved = LowRank(torch.randn(5, 1), torch.ones(1, 8))
    stage = RewritePlan.of(model, dict(plan.changes) | {"dense.weight": moved})
    with pytest.raises(InputError, match=r"dense\.weight belongs to a stage"):
        stage.save(model, tmp_path / "other")


def test_an_embedding_that_is_packed_with_its_transformer(averaged, tmp_path):
    model = load(str(averaged[0]))
    plan = RTN(bits=4, group=4, layers=("*",)).plan(model)
    assert any("embeddings" in name for name in plan.changes)
    saved = plan.save(model, tmp_path / "new")
    fed = dict(model.processor(TEXTS, **PADDED))
    found = vectors(load(str(saved.folder)).module, fed)
    torch.testing.assert_close(found, vectors(plan.fold(model), fed))


def test_a_transformer_in_a_folder_of_its_own_is_refused_before_anything_is_read(words, tmp_path):
    module = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
    path = write(tmp_path / "old", words, module, {"pooling_mode": "cls"}, weights="0_Transformer")
    with pytest.raises(InputError, match=r"0_Transformer.* save it again"):
        check_change(load(str(path)), tmp_path / "new")


@pytest.mark.truth("the library's own vectors")
def test_a_live_model_of_the_library_is_read_as_its_folder(averaged):
    library = pytest.importorskip("sentence_transformers")
    live = library.SentenceTransformer(str(averaged[0]), device="cpu")
    model = sonde.load(live)
    rows = read_rows(model)
    torch.testing.assert_close(rows["normalize:out"], torch.tensor(live.encode(TEXTS)))
    folder = read_rows(str(averaged[0]))
    assert all(torch.equal(x, folder[key]) for key, x in rows.items())
    assert model.module.model is live[0].auto_model
    live.max_seq_length = 3
    short = read_rows(sonde.load(live))["normalize:out"]
    torch.testing.assert_close(short, torch.tensor(live.encode(TEXTS)))
    assert model.processor.model_max_length == 9


@pytest.mark.slow
def test_a_scan_without_labels_says_what_it_can_judge_of_the_vectors(averaged, tmp_path):
    draw = torch.Generator().manual_seed(2)
    names = ["cat", "mat", "dog", "b", "c", "d", "on", "the"]
    texts = [
        " ".join(names[i] for i in torch.randint(8, (5 + n % 4,), generator=draw))
        for n in range(40)
    ]
    folder, data = str(averaged[0]), [{"text": text} for text in [*texts, texts[3]]]
    report = sonde.scan(folder, data)
    found = report.json()["vectors"]
    stream = sonde.read(folder, data, sites="normalize")
    vectors = torch.cat([batch.rows["normalize:out"] for batch in stream])
    cosine = vectors @ vectors.T
    n = len(vectors)
    assert found["mean_cosine"] == pytest.approx(
        float((cosine.sum() - n) / (n * (n - 1))), abs=1e-5
    )
    assert (found["dim"], found["n_copies"], found["pooling"]) == (5, 1, "mean+special")
    assert "1 copy" in str(report)


@pytest.mark.slow
@pytest.mark.truth("cosines of all pairs by numpy, one row at a time")
def test_few_labels_of_an_embedding_model_are_judged_by_nearest_rows(averaged):
    draw = torch.Generator().manual_seed(4)
    kinds = (["cat", "mat", "the"], ["b", "c", "d"])
    rows = []
    for n in range(26):
        chosen = torch.randint(3, (5 + n % 3,), generator=draw).tolist()
        words = [kinds[n % 2][i] for i in chosen] + ["dog"] * (n % 4)
        rows.append({"text": " ".join(words), "label": "AB"[(n + (n % 5 == 0)) % 2]})
    folder = str(averaged[0])
    report = sonde.scan(folder, rows)
    batches = list(sonde.read(folder, rows, sites="normalize"))
    vectors = torch.cat([b.rows["normalize:out"] for b in batches]).numpy()
    label = torch.cat([b.label for b in batches]).tolist()
    group = torch.cat([b.group for b in batches]).tolist()
    same, chances = [], []
    for i, x in enumerate(vectors):
        others = [j for j in range(len(vectors)) if group[j] != group[i]]
        nearest = max(others, key=lambda j, x=x: float(x @ vectors[j]))
        same.append(label[nearest] == label[i])
        chances.append(sum(label[j] == label[i] for j in others) / len(others))
    found = report.json()["vectors"]["neighbours"]
    assert found["n_rows"] == len(vectors) == 26
    assert found["same"] == pytest.approx(sum(same) / 26)
    assert found["chance"] == pytest.approx(sum(chances) / 26)
    assert 0.5 < found["same"] < 1
    text = " ".join(str(report).split())
    assert f"the same label for {100 * found['same']:.3g} % of 26 labelled rows" in text
    assert "no probe was fitted: a probe needs 30 rows" in text
    assert "--label-column" not in text


def test_a_cache_of_a_model_that_writes_no_text_is_refused_before_any_work(averaged):
    from sonde.run.compressing.compare_caches import compare_caches

    with pytest.raises(InputError, match=r"expected a language model.*SentenceEncoder"):
        compare_caches(str(averaged[0]), "nowhere.jsonl")
