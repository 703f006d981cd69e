# Every target sets itself up: Python, make and pip are all a machine needs.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

.PHONY: beds bench bench-accuracy bench-calibrated bench-cld bench-independence bench-inverse bench-law bench-likelihood bench-overhead bench-peers bench-quality clean demo docs fuzz lint mutation notebooks tables test test-clients test-fast test-slow

demo: $(STAMP)
	$(PY) -m sgm_sde demo --out out/demo

test: $(STAMP)
	$(PY) -m pytest -m "not slow" -n auto

# The inner loop: values, processes, engine and the interface, without orders, statistics, memory, compilation and own steps.
FAST := tests/processes tests/engine tests/sampling/test_sampler.py $(addprefix --ignore=tests/engine/test_,adaptive.py brownian.py memory.py)
LONG := without_tqdm or ends_alone or without_an_order or stated_order or stated_weak_order or law_of_the_data or rotations or compiling
test-fast: $(STAMP)
	$(PY) -m pytest -m "not slow" -n auto $(FAST) -k "not ($(LONG))"

test-slow: $(STAMP)
	$(PY) -m pytest -m slow -n auto

# Other people's programs with our solvers in them, in an environment of their own.
CLIENTS := .venv-clients

test-clients: $(CLIENTS)/.installed
	$(CLIENTS)/bin/python -c "import diffusers, transformers, importlib.metadata as m; m.version('k-diffusion')"
	$(CLIENTS)/bin/python -m pytest tests/clients
	$(CLIENTS)/bin/python -m pytest -m "not slow" tests/adapters tests/benchmarks/test_peers.py

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) tools/check_words.py
	$(VENV)/bin/mypy

# The site, in site/; every public name must be on a page of the reference.
docs: $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	$(PY) tools/api_pages.py --check
	$(VENV)/bin/zensical build --clean --strict

# What is written down of the solvers and the public names, after adding one: orders measured, reference, registry.
tables: $(STAMP)
	$(VENV)/bin/ruff check --quiet --fix sgm_sde/schemes/__init__.py
	$(PY) -m benchmarks.orders --missing --check
	$(PY) tools/api_pages.py
	$(PY) -m tests.golden

# The notebooks, run, and their pages.
notebooks: $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt nbclient nbconvert ipykernel
	$(PY) tools/notebooks.py

bench: bench-accuracy

bench-accuracy: $(STAMP)
	$(PY) -m benchmarks.defaults --out out/bench
	cp out/bench/defaults.png docs/accuracy.png

bench-peers: $(STAMP)
	$(PY) -m benchmarks.accuracy --out out/bench

# The test beds of bench-accuracy anew: networks, references, and what the registry can do on them.
beds: $(STAMP)
	$(PY) -m benchmarks.bed_networks
	$(PY) -m benchmarks.beds references

bench-quality: $(STAMP)
	$(PY) -m benchmarks.peers_quality --out out/bench

bench-cld bench-independence bench-inverse bench-law bench-likelihood bench-overhead: bench-%: $(STAMP)
	$(PY) -m benchmarks.$* --out out/bench

# Fits to every test bed, kept as they are done; an hour on one core for all of them.
bench-calibrated: $(STAMP)
	$(PY) -m benchmarks.calibrated measure
	$(PY) -m benchmarks.calibrated frechet
	$(PY) -m benchmarks.calibrated report --out out/bench
	cp out/bench/calibrated.png out/bench/calibrated_cost.png docs/

fuzz: $(STAMP)
	$(PY) -m tests.fuzz --calls 40000 --seed 2

mutation: $(STAMP)
	$(PY) tools/mutation.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

$(CLIENTS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,clients]"
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps k-diffusion azula einops
	touch $@

clean:
	rm -rf $(VENV) $(CLIENTS) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
