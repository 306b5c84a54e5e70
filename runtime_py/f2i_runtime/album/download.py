"""Photos from URLs: fetched whole and within a limit, or refused with the reason."""

from __future__ import annotations

import http.client
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from f2i_runtime.errors import PhotoError

MAX_DOWNLOAD_BYTES = 1 << 30
TIMEOUT_SECONDS = 60
_BLOCK = 1 << 18
_SCHEMES = ("http://", "https://")


def is_url(text: str) -> bool:
    """Returns whether ``text`` is the address of a photo rather than a path."""
    return text.lower().startswith(_SCHEMES)


def url_file_name(url: str) -> str:
    """Returns the file name in a URL, such as ``a b.jpg`` of ``https://host/a%20b.jpg?x=1``; ``photo`` where it has none that a file may have."""
    try:
        name = unquote(urlsplit(url).path).replace("\\", "/").rsplit("/", 1)[-1]
    except ValueError:
        name = ""
    name = "".join(c for c in name if c.isprintable() and c not in '<>:"|?*').strip(". ")
    return name[-120:] or "photo"


def fetch(url: str, destination: Path, limit: int = MAX_DOWNLOAD_BYTES) -> None:
    """Download ``url`` to ``destination``.

    Raises:
        PhotoError: the address is none, the server does not answer or says no, more than ``limit`` bytes come, or fewer than the server announced.
    """
    try:
        with urllib.request.urlopen(_quoted(url), timeout=TIMEOUT_SECONDS) as answer, destination.open("wb") as file:
            announced = _announced(answer)
            if announced is not None and announced > limit:
                raise PhotoError(f"{url}: {announced} bytes, expected at most {limit}")
            came = 0
            while block := answer.read(_BLOCK):
                came += len(block)
                if came > limit:
                    raise PhotoError(f"{url}: more than {limit} bytes came, expected at most that many")
                file.write(block)
    except (http.client.HTTPException, OSError, ValueError) as e:
        raise PhotoError(f"{url}: cannot be downloaded: {_reason(e)}; run the same command again") from e
    if announced is not None and came != announced:
        raise PhotoError(f"{url}: {came} bytes came, expected {announced}; run the same command again")


def _announced(answer: Any) -> int | None:
    """What ``Content-Length`` says, None where it says nothing that can be."""
    text = (answer.headers.get("Content-Length") or "").strip()
    return int(text) if text.isdecimal() else None


def _quoted(url: str) -> str:
    """Returns the URL with blanks and letters outside ASCII as bytes in percent signs, and what is escaped already left alone."""
    parts = urlsplit(url)
    host = parts.netloc.encode("idna").decode("ascii") if not parts.netloc.isascii() else parts.netloc
    safe = "/%:@!$&'()*+,;=~-._?[]"
    return urlunsplit((parts.scheme, host, quote(parts.path, safe), quote(parts.query, safe), ""))


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return f"the answer was cut short after {len(error.partial)} bytes of its last part"
    return " ".join(str(error).split()) or type(error).__name__
