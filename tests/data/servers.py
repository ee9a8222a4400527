"""A web server of a folder that knows ranges of bytes, counts what it sends, and fails on demand."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class FolderServer(ThreadingHTTPServer):
    """Answers GET, with or without a range, and HEAD."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.sent: list[tuple[str, int, int]] = []
        """(file, first byte, bytes) of every answer with a range"""
        self.cuts = 0
        """answers with a range that are still to end half way, without a word"""
        self.knows_ranges = True
        self.released = threading.Event()
        """while it is not set, answers with a range wait"""
        self.released.set()
        self.waiting = 0
        """answers with a range that were asked for"""
        self.counting = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FolderServer

    def do_HEAD(self) -> None:
        path = self._file()
        if path is not None:
            self._begin(200, path.stat().st_size, path)

    def do_GET(self) -> None:
        path = self._file()
        if path is None:
            return
        content = path.read_bytes()
        found = RANGE.fullmatch(self.headers.get("Range", ""))
        if not found or not self.server.knows_ranges:
            self._begin(200, len(content), path)
            self.wfile.write(content)
            return
        with self.server.counting:
            self.server.waiting += 1
        self.server.released.wait(20)
        start, last = map(int, found.groups())
        part = content[start : last + 1]
        self.server.sent.append((path.name, start, len(part)))
        self._begin(206, len(part), path)
        if self.server.cuts:
            self.server.cuts -= 1
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def _file(self) -> Path | None:
        path = self.server.folder / self.path.lstrip("/")
        if path.is_file():
            return path
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _begin(self, status: int, size: int, path: Path) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()


@contextmanager
def served(folder: Path) -> Iterator[FolderServer]:
    """A server of this folder that runs for a while; the test is skipped where fsspec cannot read over http."""
    pytest.importorskip("aiohttp")
    with FolderServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
