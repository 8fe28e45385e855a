"""Real HTTP servers on this machine, well-behaved and not."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Plain(SimpleHTTPRequestHandler):
    """Whole files only, as ``python -m http.server`` sends them; counts requests and bytes."""

    requests: Counter
    sent: Counter

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.requests[self.path] += 1
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.answer(path.read_bytes())
        else:
            self.send_error(404)

    def answer(self, content, status=200, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(headers.pop("length", len(content))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.sent[self.path] += len(content)
        self.wfile.write(content)


class Ranges(Plain):
    """Parts of files too."""

    def answer(self, content, status=200, **headers):
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            return super().answer(content, status, **headers)
        first, last = int(asked[1]), int(asked[2])
        part = content[first : last + 1]
        return super().answer(part, 206, Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(content)}")


class BreaksOffTwice(Ranges):
    """The first two answers about each shard end in the middle."""

    def answer(self, content, status=200, **headers):
        if self.path.endswith(".tar") and self.requests[self.path] <= 2:
            super(Ranges, self).answer(content[: len(content) // 3], status, length=len(content))
            self.close_connection = True
        else:
            super().answer(content, status, **headers)


class Garbage(Ranges):
    """Shards of the right length, and nothing right in them."""

    def answer(self, content, status=200, **headers):
        if self.path.endswith(".tar"):
            content = bytes(255 - byte for byte in content)
        super().answer(content, status, **headers)


class Slow(Ranges):
    """Half a second to the first byte of anything."""

    def answer(self, content, status=200, **headers):
        time.sleep(0.5)
        super().answer(content, status, **headers)


@contextmanager
def serve(folder, handler):
    """Serve a folder; gives the URL and the handler's class with its counts."""
    counting = type(handler.__name__, (handler,), {"requests": Counter(), "sent": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(counting, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", counting
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
