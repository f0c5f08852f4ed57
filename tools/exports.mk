# make exports: the loaders of VLMEvalKit, ms-swift, LLaMA-Factory and verl, in one environment (about 3 GB). The packages
# are installed without their own needs, which exclude each other; the list has what their data modules import.
EXPORTS_VENV := .venv-export
EXPORTS_PIP := $(EXPORTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c tools/constraints/exports.txt

.PHONY: exports
exports: $(EXPORTS_VENV)/done

$(EXPORTS_VENV)/done: tools/exports.mk tools/constraints/exports.txt tools/torchvision_hook.py
	$(PYTHON) -m venv $(EXPORTS_VENV)
	$(EXPORTS_PIP) torch
	$(EXPORTS_PIP) --no-deps torchvision ms-vlmeval ms-swift llamafactory verl qwen-vl-utils
	$(EXPORTS_PIP) -r tools/constraints/exports-needs.txt
	$(EXPORTS_VENV)/bin/python tools/torchvision_hook.py
	$(EXPORTS_VENV)/bin/python -c 'import swift, verl, vlmeval'
	touch $@
