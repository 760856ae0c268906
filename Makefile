# make demo: sets up, trains on the embedded data set for a few minutes and draws samples.
# make test: sets up, lints and runs the tests. Both make the environment themselves (setup.sh).
# make setup [PYTHON=python3.13] [VENV=.venv] [GPU=1]: that alone, of another Python, elsewhere, for NVIDIA GPUs.
VENV ?= .venv
PY := $(VENV)/bin/python
DEMO_STEPS ?= 700
DEMO_DIR ?= runs/demo
export VENV PYTHON GPU

.PHONY: demo test test-slow setup lock clean

demo: setup
	$(PY) main.py --mode=train --dataset=emoji64 --run_dir=$(DEMO_DIR) --train_steps=$(DEMO_STEPS) \
	    --set=training.sample_every=350 --set=training.eval_every=350 --set=training.checkpoint_every=350
	$(PY) main.py --mode=sample --run_dir=$(DEMO_DIR) --num_samples=36 --sample_batch_size=36

test: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m pytest -q -m "not slow"

test-slow: setup
	$(PY) -m pytest -q -m slow --durations=20

setup:
	@./setup.sh

# Needs uv, network and nothing else; run it after changing requirements*.txt.
lock:
	uv pip compile --quiet --universal --python-version 3.9 --no-annotate --no-header requirements-dev.txt \
	    -o requirements.lock
	cp requirements.lock requirements-gpu.lock
	uv pip compile --quiet --universal --python-version 3.9 --no-annotate --no-header requirements-gpu.txt \
	    -o requirements-gpu.lock

clean:
	rm -rf .venv
