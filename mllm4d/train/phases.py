"""Where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Phases:
    """Seconds of each phase of a step; a phase that comes again is added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._device = torch.device("cpu")

    def restart(self, device: torch.device) -> None:
        """Forget the step before.

        Args:
            device: Whose work is waited for at the borders of a phase.
        """
        self.seconds, self._device = {}, device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        begun = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begun

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
