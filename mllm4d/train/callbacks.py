"""What people look at: score tables and charts, sample clips, throughput, hyper-parameters; one file each."""

from mllm4d.train.hyperparameters import HyperParameters
from mllm4d.train.sample_clips import SampleClips, add_clip, add_points
from mllm4d.train.score_table import ScoreTable, print_table
from mllm4d.train.throughput import Throughput, computed_tokens

__all__ = [
    "HyperParameters",
    "SampleClips",
    "ScoreTable",
    "Throughput",
    "add_clip",
    "add_points",
    "computed_tokens",
    "print_table",
]
