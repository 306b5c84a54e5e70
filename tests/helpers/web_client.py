"""What a phone sends to the benchmark's server, well formed and not."""

import http.client
import json
import urllib.parse

from web_page import ARRIVAL

EVIL = ("__proto__", "a" * 3000, "\x1b[31mred", "[bold]", "<script>", "..", "/etc/passwd", "", "\u202e", "\x00", "😀" * 40)


class Client:
    """A browser's requests, one connection each."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.host, self.port, self.base = parts.hostname, parts.port, parts.path

    def ask(self, method, path, body=None, headers=()):
        """Returns (status, headers, body); status 0 where the connection was closed without an answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            sent = dict(headers)
            if body is not None and not {"Content-Length", "Transfer-Encoding"} & set(sent):
                sent["Content-Length"] = str(len(body))
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        except (http.client.HTTPException, OSError):
            return 0, {}, b""
        finally:
            connection.close()

    def get(self, path, **options):
        return self.ask("GET", self.base + path, **options)

    def post(self, path, data):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        status, _, answer = self.ask("POST", self.base + path, body)
        return status, json.loads(answer) if answer else {}

    def arrive(self, asked=((0, "wasm", 1),), **changes):
        status, answer = self.post("browser", {"arrival": ARRIVAL | changes, "asked": list(asked)})
        assert status == 200, answer
        return answer["session"]


def result(**changes):
    items = [
        {"component": c, "load_ns": 10**7, "first_ns": 10**6, "rounds": [[10**6, 2 * 10**6]] * 3, "error": None}
        for c in ("feature_encoder", "unet")
    ]
    return {"job": 0, "backend": "wasm", "threads": 1, "engine": "runtime 1", "start_ns": 10**8, "items": items} | changes


def malformed(draw, client, session):
    """A request that must be refused: (method, path, body, headers)."""
    good = {"browser": {"arrival": ARRIVAL, "asked": [[0, "wasm", 1]]}, f"result/{session}": result()}
    where = draw.choice(list(good))
    data = json.loads(json.dumps(good[where]))
    kind = draw.randrange(9)
    body, path, headers, method = None, client.base + where, {}, "POST"
    if kind == 0:  # a value of another type, size or range, somewhere
        holder, key = draw.choice([(h, k) for h, k in places(data)])
        wrong = [float("nan"), float("inf"), -1, -(10**30), 10**30, 1.5, [], {}, None, True, "x" * 600, *EVIL]
        holder[key] = draw.choice([w for w in wrong if type(w) is not type(holder[key]) or w in (-1, -(10**30), 10**30, "x" * 600)])
        if holder[key] is None and key in ("gpu", "error", "memory_gib", "load_ns", "first_ns", "start_ns"):
            holder[key] = {}
        if key == "gpu" and isinstance(holder[key], str) and len(holder[key]) <= 500:
            holder[key] = 3
        if key == "error" and isinstance(holder[key], str) and len(holder[key]) <= 500:
            holder[key] = [1]
        if key == "memory_gib" and holder[key] == 1.5:
            holder[key] = -1.5
    elif kind == 1:  # keys that are missing or too many
        holder, key = draw.choice([(h, k) for h, k in places(data) if isinstance(h, dict) and k not in ("platform", "model", "architecture", "gpu", "memory_gib")])  # fmt: skip
        del holder[key]
        holder[draw.choice(EVIL) + "?"] = 1
    elif kind == 2:  # no JSON
        body = draw.choice(
            [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"1", b'"x"', b"NaN", b'{"job": 0', json.dumps(data).encode()[:-1]]
        )
    elif kind == 3:  # too large, said or sent
        body = b" " * (draw.randrange(1, 40) * 10_000 + (1 << 18))
    elif kind == 4:  # a size that is none, or does not fit
        headers = {"Content-Length": draw.choice(["-1", "1e3", "x", "99999999999999", "+5", " ", "0x10", str(10**9)])}
        body = b"x" * draw.randrange(20)
    elif kind == 5:
        headers, body = {"Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n0\r\n\r\n"
    elif kind == 6:  # a wrong token
        other = draw.choice([client.base[:-2] + "x/", "/", "/%2e%2e/", "/" + "a" * 22 + "/", client.base.swapcase(), client.base + "../x/"])
        path = other + where if other != client.base else "/x"
    elif kind == 7:  # a session or a component that there is not
        strange = [f"output/{session}/{e}" for e in ("nothing", "..", "unet/..", "")] + [
            f"{w}/{'A' * 16}" for w in ("result", "end", "output")
        ]
        path = client.base + draw.choice([*strange, "result/", "output", "result/../x", "browser/x", "x"])
    else:
        method = draw.choice(["PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "F" * 200, "get"])
    if body is None and method == "POST":
        body = json.dumps(data).encode()
    path = urllib.parse.quote(path, safe="/%?=&._-~")
    return method, path, body, headers


def places(data):
    """(holder, key) of every value in a JSON document."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(pairs):
        yield data, key
        yield from places(value)
