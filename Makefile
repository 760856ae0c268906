# make demo [DEMO_MINUTES=3] [DEMO_DIR=runs/demo]: sets up, draws from the weights that ship, then trains from nothing
#   for some minutes; run again, it trains on. docs/sizes.md says what to expect when.
# make test [WORKERS=2]: sets up, lints and runs the fast tests in two processes.
# make test-slow: all other tests, those of half a minute (slow) and those of many minutes or gigabytes (heavy).
#   All of these make the environment themselves (setup.sh).
# make setup [PYTHON=python3.13] [VENV=.venv] [GPU=1]: that alone, of another Python, elsewhere, for NVIDIA GPUs.
VENV ?= .venv
PY := $(VENV)/bin/python
DEMO_MINUTES ?= 3
DEMO_DIR ?= runs/demo
WORKERS ?= 2
PYTEST := $(PY) -m pytest -q -n $(WORKERS) --dist loadfile
# Minutes are few steps: small batches and a high rate make the most of them. The preset's own are for hours.
DEMO := --batch_size=16 --set=optimizer.learning_rate=1e-3 --set=optimizer.clip_norm=1 --set=training.ema_lengths= \
    --set=training.sample_every=200 --set=training.sample_images=16 --set=training.sample_steps=10 --set=training.score_every=0
export VENV PYTHON GPU

.PHONY: demo test test-slow setup lock clean

demo: setup
	@echo "1. 36 pictures from the weights that ship with the project:"
	@$(PY) main.py --mode=sample --run_dir=pdm_tf/pretrained/avatars64 --out=$(DEMO_DIR)/shipped \
	    --num_samples=36 --sample_batch_size=36
	@echo "2. $(DEMO_MINUTES) minutes of training from nothing; a preview about every minute lands in $(DEMO_DIR)/previews:"
	@$(PY) main.py --mode=train --run_dir=$(DEMO_DIR) $(DEMO) --set=training.minutes=$(DEMO_MINUTES)
	@echo "3. To go on from here for an hour: make demo DEMO_MINUTES=60"
	@echo "   3 minutes of two cores draw heads on shoulders, hair and the outlines of some faces, on plain colours;"
	@echo "   picture 1, $(DEMO_DIR)/shipped/grid.png, is of a ViT, which --network=vit trains; docs/sizes.md: when to expect what."

test: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PYTEST) -m "not slow and not heavy"

test-slow: setup
	$(PYTEST) -m "slow or heavy" --durations=20

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
