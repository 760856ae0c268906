# make demo: sets up, trains on the embedded data set for a few minutes and draws samples.
# make test: sets up, lints and runs the tests. Both make .venv themselves, on Python 3.9 to 3.11.
PY := .venv/bin/python
DEMO_STEPS ?= 700
DEMO_DIR ?= runs/demo
# Python to make .venv with; by default the first of these that runs and fits.
PYTHON ?=

.PHONY: demo test test-slow setup lock clean

demo: setup
	$(PY) main.py --mode=train --dataset=emoji64 --run_dir=$(DEMO_DIR) --train_steps=$(DEMO_STEPS) \
	    --set=training.sample_every=350 --set=training.eval_every=350 --set=training.checkpoint_every=350
	$(PY) main.py --mode=sample --run_dir=$(DEMO_DIR) --num_samples=36 --sample_batch_size=36

test: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m pytest -q -m "not slow"

test-slow: setup
	$(PY) -m pytest -q -m slow --durations=20

setup: .venv/.ready

.venv/.ready: requirements.lock
	@python=""; seen=""; \
	for candidate in $(if $(PYTHON),$(PYTHON),python3.11 python3.10 python3.9 python3 python); do \
	  version=$$($$candidate -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  seen="$$seen $$candidate is $$version;"; \
	  case $$version in 3.9|3.10|3.11) python=$$candidate; break;; esac; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "pdm_tf needs Python 3.9, 3.10 or 3.11 (TensorFlow 2.15 has no others);$${seen:- no Python was found;}" \
	    "get one, for instance with 'uv python install 3.11' or 'pyenv install 3.11'," \
	    "and run: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	rm -rf .venv && echo "making .venv with $$python" && $$python -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch .venv/.ready

# Needs uv, network and nothing else; run it after changing requirements*.txt.
lock:
	uv pip compile --universal --python-version 3.9 --no-annotate --no-header requirements-dev.txt \
	    -o requirements.lock

clean:
	rm -rf .venv
