# make demo   the whole set-up, then train, test, rank list, Grad-CAM and t-SNE on drawn people
# make test   the whole set-up, then every test;  make test-all  the slow ones too
# make fuzz   an hour of made-up files, tables, checkpoints and parameters (make fuzz SECONDS=600: ten minutes)
# make gpu    on a GPU: its tests, then the benchmarks, written to benchmarks/gpu.md; make gpu REHEARSE=1: tiny, on a CPU
# make bench  the benchmarks, written to benchmarks/*.md (a quiet machine, some ten minutes)
# make zoo    MODEL_ZOO.md and the costs of all models, counted anew (a minute)
# make docs   README, docs/ and the API as a website in site/, with all links checked (half a minute)
# make pictures   the pictures of README and docs/ anew, from the run of make demo (which it calls if there is none)
# make drawn-weights   the weights "drawn" in the package anew (hours: see benchmarks/drawn_weights.md; MODELS=osnet_x0_25)
# make lab    JupyterLab on the notebooks;  make notebooks  their outputs anew

PYTHON ?= python3
BIN    := .venv/bin
# The mark of a finished installation carries the pins' checksum: other pins, another .venv.
READY  := .venv/.ready-$(shell cksum < requirements.txt | tr -c '0-9\n' '-')

.PHONY: demo test test-all fuzz gpu bench zoo docs pictures drawn-weights lab lint notebooks lock setup clean

# One thread a process: on small networks a second one gains a third on an idle machine, and on a busy one the two
# spend their time waiting for each other. The tests use the other cores by running side by side.
demo test test-all notebooks drawn-weights: export OMP_NUM_THREADS = 1
PYTEST := $(BIN)/python -m pytest -q
# One process more than there are cores, as tests wait for children; a process takes up to 2.5 GB.
SIDES  := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 4 ? cores + 1 : 4)))
# `train` first: the others open its run. Here and in tests/conftest.py, which says in what order things are tested.
BOOKS  := notebooks/train.ipynb $(filter-out notebooks/train.ipynb,$(wildcard notebooks/*.ipynb))
# The tests, and every cell of every notebook, side by side.
ALL     = export REID_RUNS=$$(mktemp -d) && $(PYTEST) --nbval-lax -n $(SIDES) --dist loadscope --no-loadscope-reorder \
          tests notebooks

demo: $(READY)
	$(BIN)/python -m reidlib.batch train test ranklist gradcam tsne \
	  -p run demo -p resume restart -p recipe demo -p model osnet_x0_25 -p dataset synthetic-small \
	  -p datasets synthetic-small,synthetic_b-small -p flip true

test: $(READY) lint
	$(ALL) -m "not slow"

test-all: $(READY) lint
	$(ALL)

SECONDS ?= 3600
fuzz: $(READY)
	REID_FUZZ_SECONDS=$(SECONDS) $(PYTEST) tests/fuzz --timeout 0

# A Python that has what is needed, as on a machine without network, is used as it is: make gpu PYTHON=python3.
NEEDED := accelerate,matplotlib,numba,psutil,pytest,safetensors,scipy,timm,torch,torchvision,yaml
gpu:
	@python=$(PYTHON); $$python -c 'import importlib.util as u, sys; \
	  sys.exit(not all(map(u.find_spec, "$(NEEDED)".split(","))))' || { $(MAKE) setup && python=$(BIN)/python; } && \
	$$python benchmarks/gpu.py $(if $(REHEARSE),--rehearse)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy reidlib

# The committed notebooks carry the outputs of their defaults: run this after changing one.
notebooks: $(READY)
	REID_RUNS=$$(mktemp -d) $(BIN)/jupyter nbconvert --to notebook --inplace --execute \
	  --ExecutePreprocessor.record_timing=False $(BOOKS)

lab: $(READY)
	$(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

setup: $(READY)

bench: $(READY)
	$(BIN)/python benchmarks/evaluator.py
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/looking.py
	$(BIN)/python benchmarks/own_images.py
	$(BIN)/python benchmarks/clustering.py

zoo: $(READY)
	$(BIN)/python -m reidlib.models.printed.page

pictures: $(READY)
	test -f runs/demo/result.json || $(MAKE) demo
	$(BIN)/python docs/pictures.py

drawn-weights: $(READY)
	$(BIN)/python benchmarks/drawn_weights.py $(MODELS)

docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going -d site/.trees -c docs . site
	cp site/README.html site/index.html
	@echo "open site/index.html"

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Making .venv (PyTorch brings about 5 GB; a few minutes)"
	@$(PYTHON) -m venv --clear .venv || { echo "python3 -m venv failed: install python3-venv"; exit 1; }
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Renews the pins from pyproject.toml's ranges, for every Python and platform at once.
lock:
	$(PYTHON) -m venv --clear .lock && .lock/bin/pip install -q uv
	{ head -1 requirements.txt; .lock/bin/uv pip compile pyproject.toml --extra dev --extra docs --extra export --extra search --universal --python-version 3.11 \
	  --no-header --no-annotate -q --upgrade; } > requirements.new && mv requirements.new requirements.txt
	rm -r .lock

clean:
	rm -rf .venv runs data site
