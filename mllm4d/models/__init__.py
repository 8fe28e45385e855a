"""The base MLLM: loading, preprocessing, what trains, and a tiny one to try things on."""
