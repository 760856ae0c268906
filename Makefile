# make demo [DEMO_MINUTES=3] [DEMO_DIR=runs/demo]: sets up, draws faces from the weights that ship, then trains these on
#   emoji for some minutes, as one's own pictures are trained; run again, it trains on.
# make test [WORKERS=2]: sets up, lints and runs the fast tests in two processes.
# make test-slow: all other tests, those of half a minute (slow) and those of many minutes or gigabytes (heavy).
#   All of these make the environment themselves (setup.sh).
# make setup [PYTHON=python3.13] [VENV=.venv] [GPU=1]: that alone, of another Python, elsewhere, for NVIDIA GPUs.
VENV ?= .venv
PY := "$(VENV)/bin/python"
DEMO_MINUTES ?= 3
DEMO_DIR ?= runs/demo
WORKERS ?= 2
PYTEST := $(PY) -m pytest -q -n $(WORKERS) --dist loadfile
# As data without a preset are trained on two cores: docs/training.md.
DEMO := --dataset=emoji64 --network=vit --warm_start=avatars64 --batch_size=16 --set=optimizer.learning_rate=1e-3 \
    --set=optimizer.clip_norm=1 --set=training.sample_every=100 --set=training.sample_images=16 \
    --set=training.sample_steps=10 --set=training.score_every=0
export VENV PYTHON GPU

.PHONY: demo test test-slow setup lock clean

demo: setup
	@echo "1. 36 faces from weights that ship with the project:"
	@rm -rf "$(DEMO_DIR)/faces" # those of other weights, or of another machine
	@$(PY) main.py --mode=sample --run_dir=pdm_tf/pretrained/avatars64 --out="$(DEMO_DIR)/faces" --num_samples=36
	@echo "2. Training the same network on emoji, DEMO_MINUTES=$(DEMO_MINUTES); previews are in $(DEMO_DIR)/previews:"
	@$(PY) main.py --mode=train --run_dir="$(DEMO_DIR)" $(DEMO) --set=training.minutes=$(DEMO_MINUTES)
	@echo "3. To go on from here for an hour: make demo DEMO_MINUTES=60"
	@echo "   Your own pictures are trained in the same way: docs/training.md."

test: setup
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/ruff" format --check .
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
	[ ! -e "$(VENV)/.ready" ] || rm -rf "$(VENV)"
