"""Learned parts of curation, by Hugging Face classes: depth, detection, tracking."""
