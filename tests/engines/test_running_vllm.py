"""A guard and an edit on a vLLM that its user runs; ``make test-vllm`` installs vLLM."""

import asyncio
import importlib
import os
import uuid

import pytest
import torch

import sonde
from sonde.core import InputError
from sonde.core.edit import Add
from sonde.tap import editing
from vllm_case import in_order, probe_of, texts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

STARTED = {
    "worker_extension_cls": "sonde.engines.vllm_worker.StateWorker",
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "max_model_len": 128,
    "max_num_batched_tokens": 32,  # a prompt comes in pieces
    "max_num_seqs": 4,
    "block_size": 32,
    "num_gpu_blocks_override": 9,  # too few for four texts of 90 tokens
    "dtype": "float32",
    "disable_log_stats": True,
}


@pytest.fixture(scope="module")
def plain(folder):
    model = sonde.load(folder, device="cpu")
    return model, probe_of(model)


@pytest.fixture(scope="module")
def llm(folder):
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return importlib.import_module("vllm").LLM(folder, **STARTED)


def scores_of(plain, prompt, answers):
    """Return the scores of a guard on the transformers model that reads each finished text."""
    model, probe = plain
    with sonde.Guard(model, probe, alpha=None) as guard, torch.no_grad():
        found = {}
        for example, answer in enumerate(answers):
            model.module(input_ids=torch.tensor([[*prompt, *answer[:-1]]]))
            for (*key, _, position), score in in_order(guard.last()).items():
                found[(*key, example, position)] = score
    return found


def finished_texts(llm, plain, run):
    """Run requests under a guard; return outputs and scores by name of request."""
    from sonde.engines.vllm import watched

    found = {}

    def seen(output):
        found[output.request_id] = output, guard.last(here=True)

    with watched(llm, seen) as model, sonde.Guard(model, plain[1], alpha=None) as guard:
        outputs = run()
    return outputs, found


@pytest.mark.truth("a guard on transformers that reads the finished texts")
def test_each_request_is_scored_once(llm, plain, monkeypatch):
    SamplingParams = importlib.import_module("vllm").SamplingParams
    Scheduler = importlib.import_module("vllm.v1.core.sched.scheduler").Scheduler
    preempted = []
    preempt = Scheduler._preempt_request

    def count(self, request, *args, **kwargs):
        preempted.append(request.request_id)
        return preempt(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", count)
    prompts = [one["text"] for one in texts(9, 21)]
    how = {"temperature": 1.0, "min_tokens": 2}
    params = [SamplingParams(max_tokens=30, n=2 if i % 3 == 0 else 1, **how) for i in range(7)]
    params.append(SamplingParams(max_tokens=30, stop=["w5", "w6", "w7", "w8", "w9"], **how))
    params.append(SamplingParams(max_tokens=1))
    outputs, found = finished_texts(llm, plain, lambda: llm.generate(prompts, params))
    assert preempted
    assert len(found) == 9
    for output in outputs:
        answers = [one.token_ids for one in output.outputs]
        own, text = found[output.request_id]
        assert own is output
        assert in_order(text) == scores_of(plain, output.prompt_token_ids, answers)
    assert any(one.finish_reason == "stop" for output in outputs for one in output.outputs)


def test_aborted_requests_leave_nothing(llm, plain):
    SamplingParams = importlib.import_module("vllm").SamplingParams

    def run():
        names = llm.enqueue([one["text"] for one in texts(4, 22)], SamplingParams(max_tokens=20))
        for _ in range(6):
            llm.llm_engine.step()
        llm.llm_engine.abort_request([names[1]], internal=True)
        return llm.wait_for_completion(use_tqdm=False)

    outputs, found = finished_texts(llm, plain, run)
    assert len(outputs) == len(found) == 3
    for output in outputs:
        expected = scores_of(plain, output.prompt_token_ids, [output.outputs[0].token_ids])
        assert in_order(found[output.request_id][1]) == expected
    worker = llm.llm_engine.model_executor.driver_worker.worker
    assert not worker._sonde.states
    assert not worker._sonde._handles  # closed


@pytest.mark.truth("generate of transformers under the same edit, greedy")
def test_an_edit_acts_on_the_requests_of_its_user(llm, plain):
    SamplingParams = importlib.import_module("vllm").SamplingParams
    from sonde.engines.vllm import watched

    model, edit = plain[0], Add(torch.linspace(-1, 1, 128), 4.0)
    ids = model.processor(texts(1, 23)[0]["text"])["input_ids"]
    params, found = SamplingParams(max_tokens=10, temperature=0), []

    def answer():
        return llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)[0].outputs[0]

    with watched(llm) as there:
        for each in (model, there):
            with editing(each, edit, "model.layers.1", "generated"):
                if each is there:
                    found.append(list(answer().token_ids))
                else:
                    out = model.module.generate(
                        torch.tensor([ids]), max_new_tokens=10, do_sample=False, pad_token_id=0
                    )
                    found.append(out[0, len(ids) :].tolist())
        assert list(answer().token_ids) != found[1]
    assert found[0] == found[1]


def test_requests_of_an_async_engine(folder, plain):
    """In processes of its own; each task reads the scores of its own request."""
    from sonde.engines.vllm import watched

    SamplingParams = importlib.import_module("vllm").SamplingParams
    kinds = importlib.import_module("vllm.sampling_params").RequestOutputKind
    arguments = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
    engines = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM

    async def run():
        engine = engines.from_engine_args(arguments(model=folder, **STARTED))
        found = []
        try:
            with watched(engine) as model, sonde.Guard(model, plain[1], alpha=None) as guard:

                async def ask(text, kind, n, stops):
                    params = SamplingParams(max_tokens=20, n=n, output_kind=kind)
                    answers = {}
                    async for output in engine.generate(text, params, str(uuid.uuid4())):
                        for one in output.outputs:
                            before = answers.get(one.index, [])
                            delta = kind is kinds.DELTA
                            answers[one.index] = (before if delta else []) + list(one.token_ids)
                        if stops and sum(map(len, answers.values())) > 3:
                            return
                    prompt = output.prompt_token_ids
                    seen = in_order(guard.last(here=True))
                    found.append((seen, prompt, [answers[i] for i in range(n)]))

                both = (kinds.CUMULATIVE, kinds.DELTA)
                asked = [
                    ask(one["text"], both[i % 2], 1 + i // 2 % 2, i == 4)
                    for i, one in enumerate(texts(6, 24))
                ]
                await asyncio.gather(*asked)
        finally:
            engine.shutdown()
        return found

    found = asyncio.run(run())
    assert len(found) == 5
    for seen, prompt, answers in found:
        assert seen == scores_of(plain, prompt, answers)


def test_what_leaves_states_out_is_refused(folder):
    from types import SimpleNamespace

    from sonde.engines._requests import require_states
    from sonde.engines.vllm import on_vllm

    model = sonde.load(folder, device="cpu")
    for options, expected in (
        ({"speculative_config": {"method": "ngram"}}, "expected no speculative_config"),
        ({"enforce_eager": False}, "expected enforce_eager=True, without which states"),
        ({"enable_prefix_caching": True}, "expected enable_prefix_caching=False"),
        ({"enable_lora": True}, "expected enable_lora=False"),
        ({"tensor_parallel_size": 2}, "expected tensor_parallel_size=1"),
    ):
        with pytest.raises(InputError, match=expected):
            on_vllm(model, **options)

    def config(**changed):
        own = STARTED | {"speculative_config": None, "lora_config": None}
        own |= {"tensor_parallel_size": 1, "pipeline_parallel_size": 1} | changed
        part = SimpleNamespace(**own)
        return SimpleNamespace(
            parallel_config=part, model_config=part, cache_config=part,
            speculative_config=part.speculative_config, lora_config=part.lora_config,
        )  # fmt: skip

    require_states(config())
    for changed, expected in (
        ({"worker_extension_cls": ""}, r"worker_extension_cls=.*StateWorker"),
        ({"enforce_eager": False}, "enforce_eager=True .captured graphs"),
        ({"enable_prefix_caching": True}, "enable_prefix_caching=False .cached tokens"),
        ({"speculative_config": object()}, "no speculative_config"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=1 .states of several ranks"),
        ({"lora_config": object()}, "no enable_lora .an adapter makes it another model"),
    ):
        with pytest.raises(InputError, match=expected):
            require_states(config(**changed))
