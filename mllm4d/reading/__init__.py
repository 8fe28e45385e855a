"""How a text is read; ``mllm4d.answers`` is the way in."""
