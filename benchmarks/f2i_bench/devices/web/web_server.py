"""The server of the page: loopback or a LAN, a token in every path, a fixed table of files, and small JSON back.

It is Python's own, with what that leaves open closed: every request has a deadline as a whole, connections are counted, bodies have sizes known before
they are read, and a path is looked up as it came, so nothing is ever resolved against a folder.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import shutil
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from f2i_runtime.errors import F2IError, UsageError
from pydantic import Field

from f2i_bench.devices.web.web_plan import WebFile, WebPlan
from f2i_bench.devices.web.web_records import MAX_JSON_BYTES, Arrival, Posted, PostedResult, Text, parse_posted
from f2i_bench.devices.web.web_sessions import Sessions

REQUEST_SECONDS, IDLE_SECONDS, STALL_SECONDS = 20.0, 60.0, 30.0
"""How long a request may take to come, a connection may wait for the next one, and a transfer may stand still."""
JUDGING_SECONDS = 600.0
"""How long this machine may take over what has come, before the other side is cut off."""
SLOWEST = 16_384
"""Bytes per second that a transfer must reach as a whole."""
MAX_CONNECTIONS, MAX_OF_ONE = 256, 96
SECURITY = {
    # The page can contact this server and nobody else, whatever runs in it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; connect-src 'self' blob: data:; "
    "img-src 'self' blob: data:; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Announced(Posted):
    """The first thing that a page posts."""

    arrival: Arrival
    asked: list[tuple[int, Text, int]] = Field(max_length=1000)


class WebServer(ThreadingHTTPServer):
    """Serves a plan's files to whoever has the token, and gives what comes back to the sessions."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], plan: WebPlan, sessions: Sessions, token: str, tls: ssl.SSLContext | None = None) -> None:
        self.plan, self.sessions, self.token, self._tls = plan, sessions, token.encode(), tls
        self._deadlines: dict[socket.socket, float] = {}
        self._peers: Counter[str] = Counter()
        self._lock = threading.Lock()
        super().__init__(address, WebHandler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Takes a connection. TLS shakes hands later, in the connection's own thread."""
        connection, address = super().get_request()
        connection.settimeout(STALL_SECONDS)
        if self._tls:
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Returns whether there is room for another connection, of all and of this peer."""
        with self._lock:
            if len(self._deadlines) >= MAX_CONNECTIONS or self._peers[client_address[0]] >= MAX_OF_ONE:
                return False
            self._deadlines[request] = time.monotonic() + REQUEST_SECONDS
            self._peers[client_address[0]] += 1
            return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection, and counts it out when it has ended."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._deadlines.pop(request, None)
                self._peers[client_address[0]] -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the other side's affair; nothing is printed."""

    def allow(self, connection: socket.socket, seconds: float) -> None:
        """Gives a connection so many seconds from now."""
        with self._lock:
            if connection in self._deadlines:
                self._deadlines[connection] = time.monotonic() + seconds

    def service_actions(self) -> None:
        """Cuts connections whose time is up; called ten times a second."""
        now = time.monotonic()
        with self._lock:
            late = [c for c, deadline in self._deadlines.items() if deadline < now]
        for connection in late:
            with contextlib.suppress(OSError):
                # The plain socket's: TLS would wait for an answer.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


@contextlib.contextmanager
def serving(server: WebServer) -> Iterator[WebServer]:
    """Runs a server in a thread of its own until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="f2i-web", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.socket.close()
        thread.join(timeout=10)


class WebHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "f2i", ""
    timeout = STALL_SECONDS

    @property
    def _web(self) -> WebServer:
        return cast("WebServer", self.server)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: what a client sends is not for the terminal."""

    def parse_request(self) -> bool:
        """Reads the header within its time; requests without a version or with a body of unknown size are refused."""
        self._web.allow(self.connection, REQUEST_SECONDS)
        if not super().parse_request():
            return False
        if self.request_version == "HTTP/0.9" or self.headers.get("Transfer-Encoding"):
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
            return False
        return True

    def do_GET(self) -> None:
        """A file of the plan."""
        rest = self._below_token()
        file = None if rest is None else self._web.plan.files.get(rest)
        if file is None:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            self._give(file)

    def do_POST(self) -> None:
        """Something from a page: who it is, an output, a result, or that it has ended."""
        rest, size = self._below_token(), self.headers.get("Content-Length", "")
        if rest is None:
            self._refuse(HTTPStatus.NOT_FOUND)
        elif not (size.isascii() and size.isdigit() and len(size) < 12):
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
        else:
            try:
                self._answer(*self._take(rest, int(size)))
            except F2IError as e:
                self._refuse(HTTPStatus.BAD_REQUEST, str(e))

    def _take(self, rest: str, size: int) -> tuple[dict[str, Any], HTTPStatus]:
        sessions = self._web.sessions
        what, _, parts = rest.partition("/")
        identifier, _, component = parts.partition("/")
        if what == "output":
            session = sessions.find(identifier)
            sessions.keep_output(session, component, self._body(size, sessions.expected_bytes(component)))
            return {}, HTTPStatus.OK
        if what == "browser" and not parts:
            posted = parse_posted(self._body(size, MAX_JSON_BYTES), Announced)
            return {"session": sessions.arrive(posted.arrival, tuple(posted.asked))}, HTTPStatus.OK
        if what == "result" and not component:
            session = sessions.find(identifier)
            rows = sessions.judge_result(session, parse_posted(self._body(size, MAX_JSON_BYTES), PostedResult))
            kept = (
                "component",
                "status",
                "reason",
                "median_ns",
                "low_ns",
                "high_ns",
                "load_ns",
                "first_ns",
                "native_ns",
                "sqnr_db",
                "rel_l2",
            )
            return {"rows": [row.model_dump(mode="json", include=set(kept)) for row in rows]}, HTTPStatus.OK
        if what == "end" and not component:
            sessions.end(sessions.find(identifier))
            self._body(size, 0)
            return {}, HTTPStatus.OK
        raise UsageError("nothing takes that")

    def _body(self, size: int, largest: int) -> bytes:
        if size > largest:
            raise UsageError(f"{size} bytes are too many, expected at most {largest}")
        self._web.allow(self.connection, REQUEST_SECONDS + size / SLOWEST)
        body = self.rfile.read(size)
        if len(body) != size:
            raise UsageError("the body ended early")
        self._web.allow(self.connection, JUDGING_SECONDS)
        return body

    def _below_token(self) -> str | None:
        """Returns the path below the token, as it came and without a query; None where the token is not ours."""
        _, _, path = self.path.partition("/")
        token, slash, rest = path.partition("?")[0].partition("/")
        ours = hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._web.token)
        return rest if ours and slash and self.path.startswith("/") else None

    def _give(self, file: WebFile) -> None:
        packed = file.path.with_name(f"{file.path.name}.gz") if file.path and file.lasting else None
        zipped = packed is not None and packed.is_file() and "gzip" in self.headers.get("Accept-Encoding", "")
        path = packed if zipped else file.path
        with path.open("rb") if path else contextlib.nullcontext() as source:
            size = path.stat().st_size if path else len(file.content)
            self._web.allow(self.connection, STALL_SECONDS + size / SLOWEST)
            headers = {"Content-Type": file.content_type, "Content-Length": str(size), "Vary": "Accept-Encoding"}
            headers["Cache-Control"] = "private, max-age=86400, immutable" if file.lasting else "no-store"
            self._head(HTTPStatus.OK, headers | ({"Content-Encoding": "gzip"} if zipped else {}))
            if source is None:
                self.wfile.write(file.content)
            else:
                shutil.copyfileobj(source, self.wfile, 1 << 16)
        self._web.allow(self.connection, IDLE_SECONDS)

    def _answer(self, data: dict[str, Any], status: HTTPStatus) -> None:
        body = json.dumps(data).encode()
        self._head(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), "Cache-Control": "no-store"})
        self.wfile.write(body)
        self._web.allow(self.connection, IDLE_SECONDS)

    def _refuse(self, status: HTTPStatus, why: str = "") -> None:
        """Answers and closes: what may still come of the request is not read."""
        self.close_connection = True
        self._answer({"error": why or status.phrase}, status)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses: a malformed request, an unknown method. Answered without repeating anything of it."""
        self.request_version = getattr(self, "request_version", "") or "HTTP/1.1"
        self._refuse(HTTPStatus(code))

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        closing = {"Connection": "close"} if self.close_connection else {}
        for name, value in {**headers, **SECURITY, **closing}.items():
            self.send_header(name, value)
        self.end_headers()
