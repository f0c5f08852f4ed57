"""Makes a small, randomly initialised Qwen2.5-VL offline: the real architecture, processor and chat template.

For tests, laptops and learning curves; it knows nothing until it is trained.

    python -m training_recipes.tiny_model outputs/tiny-qwen
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

SPECIAL: Final = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
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
"""Texts that the tokenizer's merges are learned from by default."""
TOOLS_TEMPLATE: Final = (
    "{% if tools or messages[0].role == 'system' %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}"
    "{{ messages[0].content if messages[0].content is string else "
    "messages[0].content | map(attribute='text') | join }}\n{% endif %}"
    "{% for tool in tools or [] %}{{ tool.function.name }}({{ tool.function.parameters.properties | join(', ') }})\n"
    "{% endfor %}<|im_end|>\n{% endif %}"
)
"""In place of the first part of Qwen3-VL's template: the tools by name, in a tenth of the tokens."""
_PATCH: Final = 14


def make_tiny_model(
    folder: Path,
    seed: int = 0,
    corpus: Sequence[str] = CORPUS,
    gain: float | None = None,
    vocabulary: int = 400,
    context: int = 4096,
    max_pixels: int = 112 * 112,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    images: Mapping[str, Any] | None = None,
) -> Path:
    """Writes model, tokenizer and processor into ``folder``; the same arguments give the same weights.

    Args:
        folder: where to write.
        seed: of the weights.
        corpus: texts that the byte-pair merges are learned from; a model learns faster if its words are few tokens.
        gain: standard deviation of a weight matrix times the square root of its inputs; None for the architecture's
            own initialisation (0.02). Without training, that is too small for images to change an argmax: tests of
            inference take 2.
        vocabulary: maximum number of byte-pair tokens beside the special ones; 256 of them are the bytes.
        context: maximum positions.
        max_pixels: maximum pixels of an image; an image token is 28 x 28 pixels.
        text: settings of the language model, in place of the defaults (183 thousand parameters in all).
        vision: settings of the vision tower.
        images: settings of the image processor, such as ``image_mean`` and ``image_std``.
    """
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _save_processor(folder, corpus, vocabulary, context, max_pixels, images)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    end_ids = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
    end_ids["pad_token_id"] = ids["<|endoftext|>"]
    language = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    language |= {"intermediate_size": 128, "max_position_embeddings": context, "tie_word_embeddings": False}
    language |= {"vocab_size": len(tokenizer), **end_ids, **(text or {})}
    frequencies = language["hidden_size"] // language["num_attention_heads"] // 2
    side = frequencies * 3 // 8  # of height and of width; time has the rest, as in released models
    sections = [frequencies - 2 * side, side, side]
    language["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    tower = {"depth": 2, "hidden_size": 64, "num_heads": 2, "window_size": 112, "patch_size": _PATCH}
    tower |= {"fullatt_block_indexes": [1], "spatial_merge_size": 2} | dict(vision or {})
    tower |= {"intermediate_size": 2 * tower["hidden_size"], "out_hidden_size": language["hidden_size"]}
    config = Qwen2_5_VLConfig(
        text_config=language,
        vision_config=tower,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
        _initialise(model, gain)
    model.generation_config.update(**end_ids)
    model.save_pretrained(folder)
    return folder


def _initialise(model: Any, gain: float | None) -> None:
    for name, weight in model.named_parameters() if gain is not None else ():
        if weight.ndim > 1:
            weight.normal_(0.0, gain * weight[0].numel() ** -0.5)
        elif name.endswith("bias"):
            weight.zero_()


def make_tiny_qwen3(
    folder: Path, corpus: Sequence[str] = CORPUS, seed: int = 0, vocabulary: int = 600, gain: float | None = None
) -> Path:
    """Writes a small random Qwen3-VL, whose chat template keeps the calls of tools (Qwen2.5-VL's drops them).

    Args:
        folder: where to write.
        corpus: texts that the byte-pair merges are learned from.
        seed: of the weights.
        vocabulary: maximum number of byte-pair tokens.
        gain: as ``make_tiny_model``.
    """
    import torch
    import trl
    from transformers import (
        AutoTokenizer,
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )
    from trl.chat_template_utils import qwen3_template

    folder.mkdir(parents=True, exist_ok=True)
    template = Path(trl.__file__).parent.joinpath("chat_templates", "qwen3_vl.jinja").read_text(encoding="utf-8")
    template = TOOLS_TEMPLATE + template[template.index("{%- set image_count") :]
    _save_processor(folder, [*corpus, template], vocabulary, context=4096, max_pixels=256 * 256)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<{end}{name}>" for name in ("tool_call", "tool_response") for end in ("", "/")])
    tokenizer.response_template = qwen3_template  # how TRL reads calls
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    ends = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6], "mrope_interleaved": True}
    text = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    text |= {"intermediate_size": 192, "head_dim": 32, "rope_parameters": rope, "max_position_embeddings": 4096}
    vision = {"depth": 2, "hidden_size": 96, "num_heads": 4, "intermediate_size": 192, "out_hidden_size": 96}
    vision |= {"patch_size": 16, "num_position_embeddings": 256, "deepstack_visual_indexes": [1]}
    config = Qwen3VLConfig(
        text_config={**text, "vocab_size": len(tokenizer), "tie_word_embeddings": True, **ends},
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        _initialise(model, gain)
    model.generation_config.update(**ends)
    model.save_pretrained(folder)
    images = Qwen2VLImageProcessor(size={"shortest_edge": 32 * 32, "longest_edge": 256 * 256}, patch_size=16)
    Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=template).save_pretrained(folder)
    return folder


def _save_processor(
    folder: Path,
    corpus: Sequence[str],
    vocabulary: int,
    context: int,
    max_pixels: int,
    images: Mapping[str, Any] | None = None,
) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2_5_VLProcessor, Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[], initial_alphabet=alphabet, show_progress=False
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
        model_max_length=context,
    )
    pixels = {"shortest_edge": (2 * _PATCH) ** 2, "longest_edge": max_pixels}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, patch_size=_PATCH, **(images or {})),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return tokenizer


def teach_format(folder: Path, steps: int = 250, seed: int = 0) -> Path:
    """Teaches a small model of ``make_tiny_model`` to close its answer tags, and nothing else.

    The letter is drawn at random each time and no image is shown, so it guesses: a random model never earns a reward,
    and then GRPO has nothing to compare.

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
    words, pad = " ".join(CORPUS).split(), torch.nn.utils.rnn.pad_sequence
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is slower on several threads
    for _ in range(steps):
        asked = [" ".join(generator.choices(words, k=generator.randint(4, 16))) for _ in range(8)]
        turns = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in asked]
        prompts = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        answers = [f"<think></think> <answer>{generator.choice('ABCD')}</answer><|im_end|>" for _ in asked]
        befores, afters = (processor.tokenizer(list(texts))["input_ids"] for texts in (prompts, answers))
        pairs = list(zip(befores, afters, strict=True))
        rows = [torch.tensor(before + after) for before, after in pairs]
        labels = [torch.tensor([-100] * len(before) + after) for before, after in pairs]
        model(
            input_ids=pad(rows, batch_first=True, padding_value=processor.tokenizer.pad_token_id),
            attention_mask=pad([torch.ones_like(row) for row in rows], batch_first=True),
            labels=pad(labels, batch_first=True, padding_value=-100),
        ).loss.backward()
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
    """Write a small Qwen2.5-VL into FOLDER: random, except for the form of an answer."""
    make_tiny_model(folder, seed=seed)
    click.echo(teach_format(folder, seed=seed) if taught else folder)


if __name__ == "__main__":
    main()
