"""Scenes to questions: pure and seeded."""
