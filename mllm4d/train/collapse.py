"""When a run of reinforcement learning has gone wrong, so that nothing is gained by going on."""

from __future__ import annotations

from mllm4d.schema import InputError


class CollapsedError(InputError):
    """Training has stopped; the message says why. The last checkpoint is from before."""


class Collapse:
    """Says when to give up.

    Args:
        max_kl: Largest divergence from the reference, nats a token, over all completions of a step.
        patience: So many steps in a row without one answer that can be read, or whose gradients are not finite.

    Raises:
        InputError: A setting is out of its range.
    """

    def __init__(self, max_kl: float = 10.0, patience: int = 5) -> None:
        if max_kl <= 0 or patience < 1:
            raise InputError(
                f"model.collapse: 'max_kl' is {max_kl:g} and 'patience' {patience}; expected more than 0 and at least 1"
            )
        self.max_kl, self.patience = max_kl, patience
        self._unreadable = self._not_finite = 0

    def look(self, kl: float, invalid: float, finite: bool) -> None:
        """Look at a step.

        Args:
            kl: Divergence from the reference, nats a token; 0 where it is not computed.
            invalid: Share of the completions without an answer that can be read.
            finite: Whether gradients and divergence were finite.

        Raises:
            CollapsedError: There is a reason to give up.
        """
        self._unreadable = self._unreadable + 1 if invalid >= 1 else 0
        self._not_finite = 0 if finite else self._not_finite + 1
        if kl > self.max_kl:
            raise CollapsedError(
                f"stopped: the policy is {kl:.3g} nats a token from the reference, 'max_kl' allows {self.max_kl:g}; "
                "lower the learning rate or raise 'beta'"
            )
        if self._unreadable >= self.patience:
            raise CollapsedError(
                f"stopped: not one completion of the last {self._unreadable} steps had an answer that can be read; "
                "start from a model that knows the answer format (a cold start), or allow longer completions"
            )
        if self._not_finite >= self.patience:
            raise CollapsedError(
                f"stopped: the gradients of the last {self._not_finite} steps were not finite; lower the learning rate"
            )
