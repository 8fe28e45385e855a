"""Clips out of a folder of shards, wherever it lies: on a disk, or behind any URL that fsspec opens.

A clip is one read of its bytes. What comes over a network is checked against the index and asked for again when it is
broken; a server that cannot send parts of a file sends each shard once; with a cache, shards are kept on the disk.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mllm4d.schema import InputError, Sample
from mllm4d.shards import MEMBER_LIMIT, BrokenShard, Index, Shard, parse_clip, parse_index, read_index, scan_shard

log = logging.getLogger(__name__)

KEPT = 8
"""Whole shards that a process keeps in memory, from servers that cannot send parts: a window spans a few."""

NEVER = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Failures that trying again does not mend."""

T = TypeVar("T")


class ShardFolder:
    """A folder of shards.

    Args:
        url: A local folder, or an fsspec URL of one, such as ``https://…``, ``s3://…`` or ``gs://…``.
        cache: Local folder in which whole shards are kept, each under its checksum; many processes may share it. None
            reads clips from where they lie.
        retries: How often a failed or broken transfer is tried again.
        pause: Before the first further try, seconds; it doubles with each.
        options: What fsspec's file system of that kind takes, for example ``{"anon": true}``.

    Raises:
        InputError: fsspec knows no such URL, or the package for it is not installed.
    """

    def __init__(
        self,
        url: str,
        cache: str | None = None,
        retries: int = 3,
        pause: float = 0.5,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.url, self.retries, self.pause, self.options = str(url).rstrip("/"), retries, pause, dict(options or {})
        self.cache = None if cache is None else Path(cache)
        self.local = None if "://" in self.url else Path(self.url)
        self._ranges = True
        self._opened: tuple[int, Any, str] | None = None
        self._whole: dict[str, bytes] = {}
        self._scanned: dict[str, dict[str, tuple[int, int]]] = {}
        if self.local is None:
            self._system()

    def __getstate__(self) -> dict[str, Any]:
        # Connections, and what was read, belong to their process.
        return {**self.__dict__, "_opened": None, "_whole": {}, "_scanned": {}}

    def index(self) -> Index:
        """Read ``index.json``, and find out whether the server sends parts of files.

        Raises:
            InputError: There is none, it is malformed, or a listed shard of a local folder is not there.
        """
        if self.local is not None:
            return read_index(self.local)
        where = self.where("index.json")
        content = self._again(lambda: self._fetch("index.json"), where)
        # A server that knows no ranges ignores that one was asked for.
        if self._ranges and len(content) > 1:
            self._ranges = len(self._again(lambda: self._fetch("index.json", 0, 1), where)) == 1
            if not self._ranges and self.cache is None:
                log.warning("%s: the server sends whole files only: every reading process reads each shard", self.url)
        return parse_index(content, where)

    def read(self, shard: Shard, clip: int) -> Sample:
        """Read one clip.

        Args:
            shard: Its shard's entry.
            clip: Its number in the shard.

        Raises:
            InputError: It is malformed, not allowed or not there, or it is broken after the last try.
        """
        key, where = shard.keys[clip], self.where(shard.path)
        crc = None if shard.crc32 is None else shard.crc32[clip]

        def attempt() -> Sample:
            try:
                content = self._span(shard, self._place(shard, clip))
                if crc is not None and zlib.crc32(content) != crc:
                    raise BrokenShard(f"{where}: the bytes of clip {key!r} are not those that index.json tells of")
                return parse_clip(content, key, where)
            except BrokenShard:
                if self.cache is not None:  # spoilt since it was downloaded
                    (self.cache / f"{shard.sha256}.tar").unlink(missing_ok=True)
                raise

        return self._again(attempt, where)

    def where(self, name: str) -> str:
        """A file's full name, for messages."""
        return f"{self.url}/{name}"

    def _place(self, shard: Shard, clip: int) -> tuple[int, int]:
        """The clip's bytes: from the index, or found by scanning the shard once."""
        if shard.spans is not None:
            start, end = shard.spans[clip]
            if end - start > 4 * MEMBER_LIMIT:
                raise InputError(f"{self.where(shard.path)}: clip {shard.keys[clip]!r} has {end - start} bytes")
            return start, end
        if shard.path not in self._scanned:
            path = self._path(shard)
            if path is None:
                self._scanned[shard.path] = scan_shard(io.BytesIO(self._keep(shard)), self.where(shard.path))
            else:
                with open(path, "rb") as file:
                    self._scanned[shard.path] = scan_shard(file, self.where(shard.path))
        spans = self._scanned[shard.path]
        if shard.keys[clip] not in spans:
            raise InputError(f"{self.where(shard.path)}: lacks clip {shard.keys[clip]!r}, which index.json lists")
        return spans[shard.keys[clip]]

    def _span(self, shard: Shard, place: tuple[int, int]) -> bytes:
        start, end = place
        path = self._path(shard)
        if path is not None:
            # Opened anew: an open file shared over a fork would share its position.
            with open(path, "rb") as file:
                file.seek(start)
                content = file.read(end - start)
        elif self._ranges and shard.path not in self._whole:
            content = self._fetch(shard.path, start, end)
            if len(content) > end - start:
                self._ranges = False
                content = self._keep(shard)[start:end]
        else:
            content = self._keep(shard)[start:end]
        if len(content) != end - start:
            raise BrokenShard(f"{self.where(shard.path)}: cut off: {len(content)} of {end - start} bytes")
        return content

    def _path(self, shard: Shard) -> Path | None:
        """The local file, downloaded where there is a cache; None for what is read from afar."""
        if self.cache is not None:
            return self._cached(shard, self.cache)
        return None if self.local is None else self.local / shard.path

    def _cached(self, shard: Shard, cache: Path) -> Path:
        from filelock import FileLock

        path = cache / f"{shard.sha256}.tar"
        if path.is_file():
            return path
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():  # nobody was quicker
                part = path.with_suffix(".part")
                self._again(lambda: self._download(shard, part), self.where(shard.path))
                os.replace(part, path)
        return path

    def _download(self, shard: Shard, part: Path) -> None:
        system, root = self._system()
        system.get_file(f"{root}/{shard.path}", str(part))
        digest = hashlib.sha256()
        with open(part, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        self._check(shard, digest.hexdigest())

    def _keep(self, shard: Shard) -> bytes:
        """A whole shard in memory."""
        if shard.path not in self._whole:
            content = self._fetch(shard.path)
            self._check(shard, hashlib.sha256(content).hexdigest())
            while len(self._whole) >= KEPT:
                del self._whole[next(iter(self._whole))]
            self._whole[shard.path] = content
        return self._whole[shard.path]

    def _check(self, shard: Shard, sha256: str) -> None:
        if sha256 != shard.sha256:
            raise BrokenShard(f"{self.where(shard.path)}: has another checksum than index.json says")

    def _fetch(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        system, root = self._system()
        return system.cat_file(f"{root}/{name}", start=start, end=end)

    def _again(self, attempt: Callable[[], T], where: str) -> T:
        """Try, and try again after a pause; what is wrong with a local file stays wrong."""
        pause = self.pause
        for left in range(self.retries, -1, -1):
            try:
                return attempt()
            except Exception as error:  # each backend has errors of its own
                broken = isinstance(error, BrokenShard)
                if isinstance(error, InputError) and not broken:
                    raise
                if isinstance(error, NEVER) or not left or self.local is not None:
                    reason = str(error) or type(error).__name__
                    raise InputError(reason if broken else f"{where}: cannot be read ({reason})") from error
                time.sleep(pause)
                pause *= 2
        raise AssertionError  # the last round returns or raises

    def _system(self) -> tuple[Any, str]:
        """The file system and the folder's name in it; of this very process, since connections survive no fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            try:
                self._opened = (os.getpid(), *fsspec.core.url_to_fs(self.url, **self.options))
            except ImportError as error:
                raise InputError(f"{self.url}: needs a package that is not installed: {error}") from error
            except ValueError as error:
                raise InputError(f"{self.url}: fsspec cannot open it: {error}") from error
        return self._opened[1], self._opened[2].rstrip("/")
