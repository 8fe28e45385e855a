"""How a tiny base MLLM is trained: scenes, exercises about what is seen, and the loop."""
