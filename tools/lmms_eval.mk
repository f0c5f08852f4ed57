# make lmms-eval: lmms-eval in an environment of its own (about 2.5 GB). torch has to be there first; decord is imported by
# lmms-eval and not declared.
PYTHON ?= python3
LMMS_VENV := .venv-lmms
LMMS_PIP := $(LMMS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c tools/constraints/lmms.txt

.PHONY: lmms-eval
lmms-eval: $(LMMS_VENV)/done

$(LMMS_VENV)/done: tools/lmms_eval.mk tools/constraints/lmms.txt tools/torchvision_hook.py pyproject.toml
	$(PYTHON) -m venv $(LMMS_VENV)
	$(LMMS_PIP) torch
	$(LMMS_PIP) torch lmms-eval decord openai -e .
	$(LMMS_VENV)/bin/python tools/torchvision_hook.py
	$(LMMS_VENV)/bin/python -c 'import decord, lmms_eval, scale_vqa_eval'
	touch $@
