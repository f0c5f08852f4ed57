"""Tiny random models of other families than Qwen2.5-VL, made offline: architecture, processor and chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tiny_llava import make_tiny_llava

from training_recipes.tiny_model import SPECIAL, TEMPLATE, make_tiny_model

TEXT: Final = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
ENDS: Final = {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>"}


def _tokenizer(folder: Path, *more: str, **named: str) -> Any:
    """Returns the tokenizer of the tiny Qwen2.5-VL with further special tokens, some of them named."""
    from transformers import AutoTokenizer

    own = {"extra_special_tokens": named} if named else {}
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(folder / "tokenizer"), **own)
    if more:
        tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL, *more]})
    return tokenizer


def _text_config(tokenizer: Any) -> dict[str, Any]:
    ends = {name: tokenizer.convert_tokens_to_ids(token) for name, token in ENDS.items()}
    return {**TEXT, "intermediate_size": 128, "vocab_size": len(tokenizer), "max_position_embeddings": 4096, **ends}


def _save(folder: Path, model: Any, processor: Any, tokenizer: Any) -> Path:
    model.generation_config.update(**{name: tokenizer.convert_tokens_to_ids(token) for name, token in ENDS.items()})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_qwen2_vl(folder: Path) -> Path:
    """Writes a tiny Qwen2-VL."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer(folder)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    config = Qwen2VLConfig(
        text_config={**_text_config(tokenizer), "rope_parameters": rope, "tie_word_embeddings": False},
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "num_heads": 2,
            "hidden_size": 64,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        **_ids(tokenizer),
    )
    images = Qwen2VLImageProcessor(size={"shortest_edge": 784, "longest_edge": 12544})
    processor = Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
    return _save(folder, Qwen2VLForConditionalGeneration(config), processor, tokenizer)


def make_qwen3_vl(folder: Path) -> Path:
    """Writes a tiny Qwen3-VL."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = _tokenizer(folder)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6], "mrope_interleaved": True}
    vision = {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 64}
    vision |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(
        text_config={**_text_config(tokenizer), "head_dim": 32, "rope_parameters": rope, "tie_word_embeddings": False},
        vision_config=vision,
        **_ids(tokenizer),
    )
    images = Qwen2VLImageProcessor(size={"shortest_edge": 1024, "longest_edge": 16384}, patch_size=16)
    processor = Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=TEMPLATE)
    return _save(folder, Qwen3VLForConditionalGeneration(config), processor, tokenizer)


def _ids(tokenizer: Any) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def make_smolvlm(folder: Path) -> Path:
    """Writes a tiny SmolVLM, whose architecture is Idefics3's."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    grid = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = _tokenizer(folder, "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *grid)
    text = {"model_type": "llama", **_text_config(tokenizer)}
    config = Idefics3Config(
        text_config=text,
        vision_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"image_size": 56, "patch_size": 14},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=text["pad_token_id"],
        tie_word_embeddings=False,
    )
    edge = {"longest_edge": 112}
    images = Idefics3ImageProcessor(size=edge, max_image_size={"longest_edge": 56})
    template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    return _save(folder, Idefics3ForConditionalGeneration(config), processor, tokenizer)


def make_internvl(folder: Path) -> Path:
    """Writes a tiny InternVL 3 in the layout of transformers; an image is cut into tiles of 56 px."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = _tokenizer(folder, **named, video_token="<video>")
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **_text_config(tokenizer)},
        vision_config=vision | {"image_size": (56, 56), "patch_size": (14, 14)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    images = GotOcr2ImageProcessor(size={"height": 56, "width": 56}, max_patches=4, crop_to_patches=True)
    template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n")
    video = InternVLVideoProcessor(size={"height": 56, "width": 56})
    processor = InternVLProcessor(images, tokenizer, video, image_seq_length=4, chat_template=template)
    return _save(folder, InternVLForConditionalGeneration(config), processor, tokenizer)


def make_gemma3(folder: Path) -> Path:
    """Writes a tiny Gemma 3 with images; one of its two layers has a sliding window."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(folder, **tokens)
    text = {**_text_config(tokenizer), "head_dim": 32, "sliding_window": 512, "query_pre_attn_scalar": 32}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text | {"layer_types": ["sliding_attention", "full_attention"]},
        vision_config=vision | {"image_size": 56, "patch_size": 14, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<start_of_image>")
    processor = Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    return _save(folder, Gemma3ForConditionalGeneration(config), processor, tokenizer)


def make_mllama(folder: Path) -> Path:
    """Writes configuration and processor of a tiny Mllama (Llama 3.2 Vision), without weights."""
    from transformers import MllamaConfig, MllamaImageProcessor, MllamaProcessor

    tokenizer = _tokenizer(folder, "<|image|>", "<|python_tag|>", "<|begin_of_text|>")
    tokenizer.bos_token = "<|begin_of_text|>"
    MllamaConfig(text_config=_text_config(tokenizer)).save_pretrained(folder)
    images = MllamaImageProcessor(size={"height": 56, "width": 56}, max_image_tiles=2)
    template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image|>")
    MllamaProcessor(images, tokenizer, chat_template=template).save_pretrained(folder)
    return folder


FAMILIES: Final[dict[str, Callable[[Path], Path]]] = {
    "Qwen2-VL": make_qwen2_vl,
    "Qwen2.5-VL": make_tiny_model,
    "Qwen3-VL": make_qwen3_vl,
    "SmolVLM": make_smolvlm,
    "LLaVA": make_tiny_llava,
    "InternVL": make_internvl,
    "Gemma 3": make_gemma3,
}
