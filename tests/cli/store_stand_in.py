"""A folder behind as much of S3's protocol as reading takes: listing, sizes and ranges of bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@contextmanager
def store(folder: Path, bucket: str = "bucket") -> Iterator[str]:
    """Serve the files of a folder as those of a bucket; yields the options that URLs need."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            asked = urlsplit(self.path)
            first, _, key = unquote(asked.path).lstrip("/").partition("/")
            file = folder / key
            if first != bucket:
                self.send(404, b"", body)
            elif not key:
                self.send(200, listing(folder, bucket, parse_qs(asked.query)), body)
            elif not file.is_file():
                self.send(404, b"", body)
            elif wanted := self.headers.get("Range"):
                start, end = wanted.removeprefix("bytes=").split("-")
                content = file.read_bytes()[int(start) : int(end) + 1]
                self.send(206, content, body)
            else:
                self.send(200, file.read_bytes(), body)

        def send(self, status: int, content: bytes, body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
            self.send_header("ETag", '"0"')
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"?endpoint_override=127.0.0.1:{server.server_address[1]}&scheme=http&region=here"
    finally:
        server.shutdown()
        server.server_close()


def listing(folder: Path, bucket: str, asked: dict[str, list[str]]) -> bytes:
    """Return the answer to ListObjectsV2, of everything below a prefix."""
    prefix = asked.get("prefix", [""])[0]
    names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    found = "".join(
        f"<Contents><Key>{escape(name)}</Key><Size>{(folder / name).stat().st_size}</Size>"
        "<LastModified>2026-11-02T10:00:00.000Z</LastModified></Contents>"
        for name in names
        if name.startswith(prefix)
    )
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>1</KeyCount>"
        f"<IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
    ).encode()
