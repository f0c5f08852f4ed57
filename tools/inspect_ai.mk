# make inspect-ai: Inspect in an environment of its own, as it needs an older fsspec and python-dateutil than the one of
# constraints.txt; the tests start it from there.
PYTHON ?= python3
INSPECT_VENV := .venv-inspect
INSPECT_PIP := $(INSPECT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: inspect-ai
inspect-ai: $(INSPECT_VENV)/done

$(INSPECT_VENV)/done: tools/inspect_ai.mk pyproject.toml
	$(PYTHON) -m venv $(INSPECT_VENV)
	$(INSPECT_PIP) inspect_ai==0.3.285 'openai>=1.50' -e .
	$(INSPECT_VENV)/bin/python -c 'import inspect_ai, openai, scale_vqa_eval'
	touch $@
