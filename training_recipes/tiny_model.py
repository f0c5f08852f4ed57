"""Makes a small, randomly initialised Qwen2.5-VL without any download: the real architecture, processor and template.

For tests, laptops and learning curves; it knows nothing until it is trained.

    python -m training_recipes.tiny_model outputs/tiny-qwen
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from scale_vqa_eval.errors import InputError, Problem

SPECIAL: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS: Final = (
    "You are an expert in pathology. Read the question and the options about the image carefully, and think step by "
    "step. Write your reasoning inside <think> </think>, then put ONLY the letter of the single best option inside "
    "<answer> </answer>. Example: <think>Your reasoning</think> <answer>A</answer> Answer with the letter of the best "
    "option and nothing else. Which of the four fields shows glands, stroma, nuclei, necrosis, inflammation? ",
    "A. B. C. D. system user assistant 10x 40x 200x low mid high magnification tissue tumour normal",
)
"""What the tokenizer's merges are learned from, where nothing else is given."""


@dataclass(frozen=True, slots=True)
class TinyShape:
    """Sizes of a small Qwen2.5-VL; the defaults give 183 thousand parameters.

    Attributes:
        hidden, layers, heads, key_value_heads, intermediate: of the language model.
        vision_hidden, vision_layers, vision_heads: of the vision tower.
        patch: side of a vision patch in pixels; an image token is (2 * patch) ** 2 pixels.
        full_attention: vision layers that see the whole image; None for the last. The others see windows.
        window: side of an attention window in pixels.
        vocabulary: most byte-pair tokens, special ones not counted; 256 of them are the bytes.
        context: most positions.
        least_pixels, most_pixels: bounds of an image as the processor brings it in; None for one token.
        gain: standard deviation of a weight matrix times the square root of its inputs; None for the architecture's
            own initialisation (0.02), which is right for training. Untrained and shallow, that is too small for
            images to change an arg max: tests of inference take 2.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 2
    key_value_heads: int = 1
    intermediate: int = 128
    vision_hidden: int = 64
    vision_layers: int = 2
    vision_heads: int = 2
    patch: int = 14
    full_attention: tuple[int, ...] | None = None
    window: int = 112
    vocabulary: int = 400
    context: int = 4096
    least_pixels: int | None = None
    most_pixels: int = 112 * 112
    gain: float | None = None


def make_tiny_model(
    folder: Path, shape: TinyShape | None = None, seed: int = 0, corpus: Sequence[str] = CORPUS
) -> Path:
    """Writes model, tokenizer and processor into ``folder``; the same arguments give the same weights.

    Args:
        folder: where to.
        shape: sizes.
        seed: of the weights.
        corpus: texts that the byte-pair merges are learned from: a model that trains on few texts learns faster
            where their words are few tokens.

    Raises:
        InputError: where the sizes do not fit together.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    shape = shape or TinyShape()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _save_processor(folder, shape, corpus)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = _config(shape, ids, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
        if shape.gain is not None:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if weight.ndim > 1:
                        weight.normal_(0.0, shape.gain * weight[0].numel() ** -0.5)
                    elif name.endswith("bias"):
                        weight.zero_()
    ends = {name: ids[token] for name, token in _ENDS.items()}
    model.generation_config.update(**ends)
    model.save_pretrained(folder)
    return folder


_ENDS: Final = {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>"}


def _config(shape: TinyShape, ids: dict[str, int], vocabulary: int) -> Any:
    from transformers import Qwen2_5_VLConfig

    head = shape.hidden // shape.heads
    if shape.hidden % shape.heads or head % 4:
        expected, found = "a hidden size that gives every head a multiple of 4", f"{shape.hidden} for {shape.heads}"
        raise InputError(Problem("tiny model", expected, found, "change hidden or heads"))
    side = head // 2 * 3 // 8  # rotary frequencies of height and of width; time has the rest, as in released models
    full = shape.full_attention if shape.full_attention is not None else (shape.vision_layers - 1,)
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "max_position_embeddings": shape.context,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [head // 2 - 2 * side, side, side],
            },
            "tie_word_embeddings": False,
            **{name: ids[token] for name, token in _ENDS.items()},
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": 2 * shape.vision_hidden,
            "num_heads": shape.vision_heads,
            "out_hidden_size": shape.hidden,
            "fullatt_block_indexes": list(full),
            "window_size": shape.window,
            "patch_size": shape.patch,
            "spatial_merge_size": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def _save_processor(folder: Path, shape: TinyShape, corpus: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2_5_VLProcessor, Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary, special_tokens=[], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer=trainer)
    bpe.model.save(str(folder))
    tokenizer = Qwen2Tokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        additional_special_tokens=list(SPECIAL),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=shape.context,
    )
    least = shape.least_pixels if shape.least_pixels is not None else (2 * shape.patch) ** 2
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": least, "longest_edge": shape.most_pixels}, patch_size=shape.patch
        ),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    return tokenizer


def teach_format(folder: Path, steps: int = 250, seed: int = 0) -> Path:
    """Teaches a small model of ``make_tiny_model`` to close its answer tags, and nothing else.

    The letter is drawn at random each time and no image is shown, so it guesses: a random model never earns a reward,
    and without one GRPO has nothing to compare.

    Args:
        folder: the model, changed in place.
        steps: of 8 short texts each.
        seed: of texts and letters.
    """
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=3e-3), random.Random(seed)
    words = " ".join(CORPUS).split()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model loses by sharing its work
    for _ in range(steps):
        asked = [" ".join(generator.choices(words, k=generator.randint(4, 16))) for _ in range(8)]
        opened = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in asked]
        prompts = processor.apply_chat_template(opened, tokenize=False, add_generation_prompt=True)
        answers = [f"<think></think> <answer>{generator.choice('ABCD')}</answer><|im_end|>" for _ in asked]
        ids = [
            [processor.tokenizer(text)["input_ids"] for text in pair] for pair in zip(prompts, answers, strict=True)
        ]
        longest = max(len(before) + len(after) for before, after in ids)
        tokens = torch.full((len(ids), longest), processor.tokenizer.pad_token_id)
        labels, mask = torch.full_like(tokens, -100), torch.zeros_like(tokens)
        for row, (before, after) in enumerate(ids):
            end = len(before) + len(after)
            tokens[row, :end], mask[row, :end] = torch.tensor(before + after), 1
            labels[row, len(before) : end] = torch.tensor(after)
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
@click.option("--format/--no-format", "taught", default=True, help="Teach it to close its answer tags.")
def main(folder: Path, seed: int, taught: bool) -> None:
    """Write a small Qwen2.5-VL into FOLDER: random, but for the form of an answer."""
    make_tiny_model(folder, seed=seed)
    click.echo(teach_format(folder, seed=seed) if taught else folder)


if __name__ == "__main__":
    main()
