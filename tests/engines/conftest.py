import pytest

from vllm_case import save_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    pytest.importorskip("vllm", reason="needs vllm: make test-vllm")
    path = tmp_path_factory.mktemp("vllm") / "tiny"
    save_model(path)
    return str(path)
