"""Functions that may take too long: each in a process of its own, which can be killed."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, SupportsFloat

from mllm4d.schema import InputError

START = 120.0
"""Seconds until the process has imported the function."""


class TimeLimited:
    """A function with a time limit for each call.

    Neither a signal, which only the main thread gets, nor a thread can stop a regular expression that has run wild: it
    never lets go of the interpreter. A process can be killed. It starts with the first call, is used for all, and a
    call that takes too long ends it.

    Args:
        function: Importable where the process starts: a function at the top of a module, or an object that pickles.
        seconds: The limit, once the process runs.
        name: What it is called in messages.
    """

    def __init__(self, function: Callable[..., Any], seconds: float, name: str) -> None:
        if not 0 < seconds < threading.TIMEOUT_MAX:
            raise InputError(f"{name}: 'seconds' is {seconds}; expected a positive number")
        self.function, self.seconds, self.name = function, seconds, name
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def __call__(self, *args: Any) -> float | None:
        """Call the function; from any thread, one call at a time.

        Args:
            *args: Picklable.

        Returns:
            A number, or None.

        Raises:
            TimeoutError: It took too long.
            InputError: It raised something, returned something else, or cannot be started in a process of its own.
        """
        with self._lock:
            connection = self._connection or self._start()
            try:
                connection.send(args)
                if not connection.poll(self.seconds):
                    self._end()
                    raise TimeoutError(f"{self.name} took longer than {self.seconds:g} s")
                value, problem = connection.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError) as error:
                self._end()
                raise InputError(f"{self.name}: its process died") from error
        if problem is not None:
            raise InputError(f"{self.name}: {problem}")
        return value

    def close(self) -> None:
        """End the process; a further call starts another."""
        with self._lock:
            self._end()

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "seconds": self.seconds, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _start(self) -> Connection:
        # A fresh interpreter: a fork would inherit the threads of torch half-way.
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.function), daemon=True)
        try:
            self._process.start()
        except Exception as error:
            self._process = None
            raise InputError(
                f"{self.name}: cannot run in a process of its own, which a time limit needs ({error}); expected a "
                "function at the top of a module"
            ) from error
        theirs.close()
        self._connection = mine
        try:
            ready = mine.poll(START) and mine.recv()
        except EOFError:
            ready = False
        if not ready:
            self._end()
            raise InputError(f"{self.name}: its process did not start; expected a function that can be imported there")
        return mine

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        self._process = self._connection = None


def number(value: Any) -> float | None:
    """A number as such, or None.

    Raises:
        TypeError: It is neither.
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, SupportsFloat):
        raise TypeError(f"returned {value!r:.100}; expected a number or None")
    return float(value)


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    """What the process does."""
    # Ctrl-C is for the process that owns this one, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(True)
    while True:
        try:
            args = connection.recv()
        except EOFError:
            return
        try:
            connection.send((number(function(*args)), None))
        except Exception as error:
            connection.send((None, f"{type(error).__name__}: {error}"))
