"""Where the work on clips is done: in this process, in local processes, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from mllm4d.schema import InputError

Outcome = tuple[str, str | None]
"""A clip's key, and the reason why it cannot be used, or None."""

Job = Callable[[str], Outcome]
"""Works on one clip. It must be idempotent: after a worker's death a clip is begun again."""

DIED = "the process that worked on it died twice (killed, or out of memory)"

AHEAD = 2
"""Clips handed out for each worker at a time, so that none waits for the next and the queue stays short."""


class Executor(ABC):
    """Runs a job on many clips. Subclass it and name the class in YAML by ``class_path``."""

    @abstractmethod
    def map(self, job: Job, keys: Iterable[str]) -> Iterator[Outcome]:
        """Run ``job(key)`` for every key, in any order.

        Args:
            job: Picklable.
            keys: The clips.

        Yields:
            Each clip's outcome as it is done. A clip whose worker dies is an outcome too; an exception of the job ends
            the iteration.
        """


@dataclass(frozen=True)
class InThisProcess(Executor):
    """One clip after the other, here."""

    def map(self, job: Job, keys: Iterable[str]) -> Iterator[Outcome]:
        """Run the job here."""
        yield from map(job, keys)


@dataclass(frozen=True)
class LocalProcesses(Executor):
    """Processes of this machine.

    When a process dies, every clip that was handed out may be the reason. Each of them is begun again alone, and one
    that takes its process with it once more is given up.

    Attributes:
        workers: How many processes.
    """

    workers: int = 2

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"executor: 'workers' must be at least 1, not {self.workers}")

    def map(self, job: Job, keys: Iterable[str]) -> Iterator[Outcome]:
        """Run the job in the processes."""
        todo = deque(keys)
        while todo:
            suspects = yield from self._until_death(job, todo, self.workers)
            for key in suspects:
                again = yield from self._until_death(job, deque([key]), 1)
                if again:
                    yield key, DIED

    def _until_death(self, job: Job, todo: deque[str], workers: int) -> Generator[Outcome, None, list[str]]:
        """Work until all is done or a process dies; returns the clips that were handed out then."""
        # Fresh interpreters: a fork would inherit the threads of torch and Open3D half-way.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(todo)), context, initializer=single_threaded)
        out: dict[Future[Outcome], str] = {}
        try:
            while todo or out:
                while todo and len(out) < AHEAD * workers:
                    key = todo.popleft()
                    try:
                        out[pool.submit(job, key)] = key
                    except BrokenProcessPool:
                        return [*out.values(), key]
                for future in wait(out, return_when=FIRST_COMPLETED).done:
                    if isinstance(future.exception(), BrokenProcessPool):
                        # Others may have been done before the death; the job passes over what is finished.
                        return list(out.values())
                    del out[future]
                    yield future.result()
            return []
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class RayTasks(Executor):
    """Tasks of a Ray cluster (``pip install "mllm4d[ray]"``): as many clips at a time as it has cores.

    Every machine needs this package, the source's files and the output's folder under the same paths, as on a shared
    file system.

    Attributes:
        address: Of the cluster, for example ``auto`` or ``ray://HOST:10001``; None starts one on this machine.
        cpus: Cores that a clip takes.
        retries: How often a clip is begun again after its worker's death.
    """

    address: str | None = None
    cpus: float = 1.0
    retries: int = 1

    def map(self, job: Job, keys: Iterable[str]) -> Iterator[Outcome]:
        """Run the job on the cluster; one that was running before goes on running afterwards."""
        try:
            import ray
        except ImportError as error:
            raise InputError(f'executor ray: {error}; pip install "mllm4d[ray]"') from error
        mine = not ray.is_initialized()
        if mine:
            ray.init(self.address, include_dashboard=False if self.address is None else None, log_to_driver=False)
        try:
            yield from self._map(ray, job, deque(keys))
        finally:
            if mine:
                ray.shutdown()

    def _map(self, ray: Any, job: Job, todo: deque[str]) -> Iterator[Outcome]:
        remote = ray.remote(num_cpus=self.cpus, max_retries=self.retries)(_alone)
        shared = ray.put(job)
        out: dict[Any, str] = {}
        while todo or out:
            # Asked each time: machines join and leave.
            room = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1) / self.cpus))
            while todo and len(out) < room:
                key = todo.popleft()
                out[remote.remote(shared, key)] = key
            done, _ = ray.wait(list(out), num_returns=1)
            key = out.pop(done[0])
            try:
                yield ray.get(done[0])
            except ray.exceptions.WorkerCrashedError:
                yield key, DIED
            except ray.exceptions.OutOfMemoryError:
                yield key, DIED
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error


def _alone(job: Job, key: str) -> Outcome:
    single_threaded()
    return job(key)


def single_threaded() -> None:
    """Use one thread in this process: several processes share the cores, and sums come out in one order."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
