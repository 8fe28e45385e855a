"""Stereo video to scenes and shards."""
