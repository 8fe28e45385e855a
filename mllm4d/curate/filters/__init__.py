"""Filters behind ``mllm4d.curate.quality``: of clips, pixels, camera paths and object tracks."""
