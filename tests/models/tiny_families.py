"""A tiny random model of every family: its real model class and real processor class, built from configurations.

The chat templates are short forms of the published ones with the same marks. Weights are larger than usual, so that
flat logits hide nothing.
"""

from typing import NamedTuple

import torch
import transformers as tf

from mllm4d.models import families
from mllm4d.models.tiny import SPECIAL, build_tiny, build_tokenizer

# As Qwen2.5-VL's own: the template writes the vision's start and end, and a system turn when there is none.
QWEN25_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for item in message.content %}{% if item.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ item.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3.5's own: texts are trimmed, and every answer opens with a block of thoughts.
QWEN35_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{% for item in message.content %}{% if item.type == 'video' %}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}{% else %}{{ item.text | trim }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n\n</think>\n\n' if enable_thinking is defined and not enable_thinking else '<think>\n' }}{% endif %}"
)
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% for item in message.content %}"
    "{% if item.type == 'video' %}{{ '<video>\n' }}{% elif item.type == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% else %}{{ item.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# All videos before all texts, and an answer's line begins after a blank that the prompt for answers does not have.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + ' ' }}"
    "{% for item in message.content | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for item in message.content | selectattr('type', 'equalto', 'text') %}{{ '\n' + item.text }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Texts are trimmed, the system's words open the user's turn, and the first token is in the template.
GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content[0].text + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) }}\n"
    "{{ first if loop.first else '' }}{% for item in message.content %}"
    "{% if item.type == 'image' %}{{ '<start_of_image>' }}{% else %}{{ item.text | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "bos_token_id": None,
}
VISION = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "initializer_range": 0.15}
MEAN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


class Tiny(NamedTuple):
    """What follows by hand from the sizes below, for frames of 56x56 pixels.

    Attributes:
        family: The class of the family.
        side: Of a processed frame, pixels.
        step: Frames that the vision tower takes together.
        tokens: Placeholders a step.
        extra: Placeholders a clip besides.
        end: What ends an answer.
    """

    family: type
    side: int
    step: int
    tokens: int
    extra: int = 0
    end: str = "<|im_end|>"


FAMILIES = {
    # 56 pixels are 3.5 units of 16 (patches of 8, merged 2x2), rounded to 4; of 28 they are 2.
    "qwen3": Tiny(families.Qwen3VL, 64, 2, 16),
    "qwen35": Tiny(families.Qwen3_5, 64, 2, 16),
    "qwen25": Tiny(families.Qwen2_5VL, 56, 2, 4),
    # Nobody claims Qwen2-VL: the generic family.
    "qwen2": Tiny(families.Family, 56, 2, 4),
    # Patches of 14 are 4x4, merged 2x2.
    "internvl": Tiny(families.InternVL, 56, 1, 4),
    "smolvlm": Tiny(families.SmolVLM, 56, 1, 4, end="<end_of_utterance>"),
    "llava_onevision": Tiny(families.LlavaOnevision, 56, 1, 4, extra=1),
    "gemma3": Tiny(families.Gemma3, 56, 1, 4, end="<end_of_turn>"),
}


def tokenizer_with(end="<|im_end|>", **named):
    """The tiny model's tokenizer with a family's own marks; ``named`` are reached as attributes of the tokenizer."""
    inner = build_tokenizer()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=inner._tokenizer,
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[3:]),
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.add_special_tokens({"eos_token": end})
    return tokenizer


def save(folder, model_class, config, processor):
    tokenizer = processor.tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            if name.endswith("mm_input_projection_weight"):  # Gemma 3's begins at zero, blind
                torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def text_config(tokenizer, **more):
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**TEXT, "vocab_size": len(tokenizer), **ends, **more}


def qwen_ids(tokenizer):
    ids = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def build_qwen3(folder):
    return build_tiny(folder, temporal_patch=2)


def build_qwen25(folder):
    tokenizer = build_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 2, 2]}
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "patch_size": 14}
    more = {"window_size": 56, "fullatt_block_indexes": [1], "out_hidden_size": 64, "initializer_range": 0.15}
    config = tf.Qwen2_5_VLConfig(
        text_config=text_config(tokenizer, rope_parameters=rope),
        vision_config={**vision, **more},
        **qwen_ids(tokenizer),
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}
    processor = tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(size=size, do_sample_frames=False),
        chat_template=QWEN25_TEMPLATE,
    )
    return save(folder, tf.Qwen2_5_VLForConditionalGeneration, config, processor)


def build_qwen2(folder):
    """A model type that no family claims, with a processor that no family claims."""
    tokenizer = build_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 2, 2]}
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "patch_size": 14, "mlp_ratio": 2}
    config = tf.Qwen2VLConfig(
        text_config=text_config(tokenizer, rope_parameters=rope),
        vision_config={**vision, "initializer_range": 0.15},
        **qwen_ids(tokenizer),
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}
    processor = tf.Qwen2VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(size=size, do_sample_frames=False),
        chat_template=QWEN25_TEMPLATE,
    )
    return save(folder, tf.Qwen2VLForConditionalGeneration, config, processor)


def build_qwen35(folder):
    tokenizer = build_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    linear = {f"linear_{name}": size for name, size in [("key_head_dim", 16), ("value_head_dim", 16)]}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "head_dim": 16}
    config = tf.Qwen3_5Config(
        text_config=text_config(
            tokenizer,
            rope_parameters=rope,
            layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"],
            **{**linear, **heads, "num_hidden_layers": 4, "tie_word_embeddings": True},
        ),
        vision_config={
            **{"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "patch_size": 8},
            **{"out_hidden_size": 64, "num_position_embeddings": 64, "initializer_range": 0.15},
        },
        **qwen_ids(tokenizer),
        tie_word_embeddings=True,
    )
    sizes = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2, **MEAN}
    limits = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64 * 512}
    processor = tf.Qwen3VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(**sizes, size=limits),
        tokenizer=tokenizer,
        video_processor=tf.Qwen3VLVideoProcessor(
            **sizes, size=limits, do_sample_frames=False, cap_pixels_per_frame=False
        ),
        chat_template=QWEN35_TEMPLATE,
    )
    return save(folder, tf.Qwen3_5ForConditionalGeneration, config, processor)


def build_internvl(folder):
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = tokenizer_with(**marks, video_token="<video>")
    config = tf.InternVLConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        vision_config={**VISION, "num_hidden_layers": 2, "image_size": [56, 56], "patch_size": [14, 14]}
        | {"layer_scale_init_value": 1.0},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    size = {"height": 56, "width": 56}
    processor = tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=tf.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=INTERNVL_TEMPLATE,
    )
    return save(folder, tf.InternVLForConditionalGeneration, config, processor)


def build_smolvlm(folder):
    marks = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
    marks |= {"global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}
    tokenizer = tokenizer_with(end="<end_of_utterance>", **marks)
    config = tf.SmolVLMConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={**VISION, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14},
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    processor = tf.SmolVLMProcessor(
        image_processor=tf.SmolVLMImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 56}),
        tokenizer=tokenizer,
        video_processor=tf.SmolVLMVideoProcessor(
            max_image_size={"longest_edge": 56},
            video_sampling={"max_frames": 64, "fps": 1, "video_size": {"longest_edge": 56}},
        ),
        image_seq_len=4,
    )
    return save(folder, tf.SmolVLMForConditionalGeneration, config, processor)


def build_llava_onevision(folder):
    tokenizer = tokenizer_with(image_token="<image>", video_token="<video>")
    config = tf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        vision_config={
            **{"model_type": "siglip_vision_model", **VISION, "num_hidden_layers": 2},
            **{"image_size": 56, "patch_size": 14, "vision_use_head": False},
        },
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=[[56, 56]],
    )
    size = {"height": 56, "width": 56}
    processor = tf.LlavaOnevisionProcessor(
        image_processor=tf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[56, 56]]),
        tokenizer=tokenizer,
        video_processor=tf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )
    return save(folder, tf.LlavaOnevisionForConditionalGeneration, config, processor)


def build_gemma3(folder):
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = tokenizer_with(end="<end_of_turn>", **marks)
    tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": ["<start_of_turn>"]})
    config = tf.Gemma3Config(
        text_config=text_config(
            tokenizer,
            **{"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 48},
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config={
            **{"model_type": "siglip_vision_model", **VISION, "num_hidden_layers": 2},
            **{"image_size": 56, "patch_size": 14, "vision_use_head": False},
        },
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        initializer_range=0.15,
    )
    processor = tf.Gemma3Processor(
        image_processor=tf.Gemma3ImageProcessor(size={"height": 56, "width": 56}, **MEAN),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=GEMMA3_TEMPLATE,
    )
    return save(folder, tf.Gemma3ForConditionalGeneration, config, processor)


def build(name, folder):
    """Write the tiny model of a family."""
    return globals()[f"build_{name}"](folder)
