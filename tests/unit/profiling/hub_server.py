"""A small hub on this machine: speaks the routes of the Hugging Face hub that a model's profile needs.

HEAD and GET of ``/{organization}/{name}/resolve/{revision}/{file}`` with commit, ETag, ranges and error codes; large
files are redirected to a second server, another host to any client, as the hub sends them to its CDN.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "tiny/model"


class Request(NamedTuple):
    """What a server was asked."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """The state of both servers; tests change it as they go.

    Attributes:
        files: content of the one repository.
        revisions: what ``resolve`` takes beside the commit itself.
        on_cdn: files that are redirected.
        problem: status and headers in place of every answer; None for none.
        failures: how many answers fail with ``failure`` before the rest succeed.
        denied: files that are answered with status 403.
        ignores_range: whether ranges are ignored and whole files sent.
        delay_seconds: before every answer.
        cut: file -> bytes by which the CDN's copy is shorter than it should be.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", COMMIT)
    on_cdn: tuple[str, ...] = ()
    problem: tuple[int, dict[str, str]] | None = None
    failure: tuple[int, dict[str, str]] = (503, {})
    failures: int = 0
    denied: tuple[str, ...] = ()
    ignores_range: bool = False
    delay_seconds: float = 0.0
    requests: list[Request] = field(default_factory=list)
    cdn_requests: list[Request] = field(default_factory=list)
    sent_bytes: int = 0
    url: str = ""
    cdn_url: str = ""

    def gets(self, name: str) -> list[Request]:
        """Returns the GET requests of a file, on either server."""
        asked = (*self.requests, *self.cdn_requests)
        return [request for request in asked if request.method == "GET" and f"/{name}" in request.path]


@contextlib.contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Runs both servers for a while."""
    with contextlib.ExitStack() as stack:
        for handler, attribute in ((_HubHandler, "url"), (_CdnHandler, "cdn_url")):
            bound = type("Bound", (handler,), {"hub": hub})
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound))
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            stack.callback(server.shutdown)
            setattr(hub, attribute, f"http://127.0.0.1:{server.server_address[1]}")
        yield hub


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: ClassVar[Hub]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: Any) -> None:
        """Keeps the test's output clean."""

    def answer(self) -> None:
        raise NotImplementedError

    def note(self) -> Request:
        return Request(self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))

    def reply(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(ConnectionError):  # a client may leave when it has enough
            for begin in range(0, len(content), 65536):
                self.wfile.write(content[begin : begin + 65536])
                self.hub.sent_bytes += len(content[begin : begin + 65536])

    def reply_with_file(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = self.headers.get("Range")
        if wanted is None or self.hub.ignores_range:
            self.reply(200, headers, content)
            return
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        span = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}
        self.reply(206, headers | span, part)


class _HubHandler(_Handler):
    def answer(self) -> None:
        hub = self.hub
        hub.requests.append(self.note())
        time.sleep(hub.delay_seconds)
        if hub.failures:
            hub.failures -= 1
            self.reply(*hub.failure)
        elif hub.problem is not None:
            self.reply(*hub.problem)
        else:
            self._resolve()

    def _resolve(self) -> None:
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository != MODEL:
            self.reply(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in self.hub.revisions:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        elif name in self.hub.denied:
            self.reply(403, {})
        elif name not in self.hub.files:
            self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            self._file(name)

    def _file(self, name: str) -> None:
        content = self.hub.files[name]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"X-Repo-Commit": COMMIT, "ETag": etag, "Accept-Ranges": "bytes"}
        if name in self.hub.on_cdn:
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": etag}
            self.reply(302, headers | linked | {"Location": f"{self.hub.cdn_url}/{name}?Signature=secret-signature"})
        else:
            self.reply_with_file(content, headers)


class _CdnHandler(_Handler):
    def answer(self) -> None:
        self.hub.cdn_requests.append(self.note())
        name = self.path.lstrip("/").partition("?")[0]
        self.reply_with_file(self.hub.files[name], {})
