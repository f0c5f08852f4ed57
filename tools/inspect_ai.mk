# make inspect-ai: Inspect in an environment of its own, as it needs an older fsspec and python-dateutil than the one of
# constraints.txt; the tests start it from there.
PYTHON ?= python3
INSPECT_VENV := .venv-inspect
INSPECT_PIP := $(INSPECT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c tools/constraints/inspect.txt

.PHONY: inspect-ai
inspect-ai: $(INSPECT_VENV)/done

$(INSPECT_VENV)/done: tools/inspect_ai.mk tools/constraints/inspect.txt pyproject.toml
	$(PYTHON) -m venv $(INSPECT_VENV)
	$(INSPECT_PIP) inspect_ai openai openslide-python openslide-bin -e .
	$(INSPECT_VENV)/bin/python -c 'import inspect_ai, openai, scale_vqa_eval'
	touch $@
