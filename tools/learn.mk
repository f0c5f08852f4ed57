# make learn: a small Qwen2.5-VL from random weights learns phantom questions by SFT and GRPO, on two cores; its twin
# learns leaky ones. A stage that is done is not done again: rm -r learn for a new run. SEEDS=3 trains three models.
SEEDS ?= 1
.PHONY: learn
learn: $(VENV)/test.done
	$(BIN)/python -m training_recipes.learn.run learn --seeds $(SEEDS)

# make zoom-gym: a tiny Qwen3-VL learns by GRPO where to look on synthetic slides, beside a twin that sees other slides
.PHONY: zoom-gym
zoom-gym: $(VENV)/test.done
	$(BIN)/python -m training_recipes.learn.zoom zoom-gym
