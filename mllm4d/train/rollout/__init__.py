"""Rollout engines: prompts with their videos to groups of completions, with the log-probabilities that they had."""

from mllm4d.models.completions import Completions, Policy, Rollout, policy_of, stack
from mllm4d.train.rollout.engine import RolloutEngine
from mllm4d.train.rollout.hf import GenerateRollout, SharedRollout
from mllm4d.train.rollout.vllm import ColocatedVLLM
from mllm4d.train.rollout.vllm_server import VLLMServer

__all__ = [
    "ColocatedVLLM",
    "Completions",
    "GenerateRollout",
    "Policy",
    "Rollout",
    "RolloutEngine",
    "SharedRollout",
    "VLLMServer",
    "policy_of",
    "stack",
]
