"""What differs between families of multimodal LLMs, one file a family."""

from mllm4d.models.families.family import Family, family_named, family_of, family_of_processor
from mllm4d.models.families.gemma3 import Gemma3
from mllm4d.models.families.internvl import InternVL
from mllm4d.models.families.llava_onevision import LlavaOnevision
from mllm4d.models.families.qwen2_5_vl import Qwen2_5VL
from mllm4d.models.families.qwen3_5 import Qwen3_5
from mllm4d.models.families.qwen3_vl import Qwen3VL
from mllm4d.models.families.smolvlm import SmolVLM

__all__ = [
    "Family",
    "Gemma3",
    "InternVL",
    "LlavaOnevision",
    "Qwen2_5VL",
    "Qwen3VL",
    "Qwen3_5",
    "SmolVLM",
    "family_named",
    "family_of",
    "family_of_processor",
]
