"""Text that people write: lists, recipes and JSON, whatever editor and system they come from."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from f2i_runtime.errors import UsageError

# The longer marks first: that of UTF-16 begins that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_ENDS = re.compile("\r\n|\n|\r")


def read_text_file(path: Path) -> str:
    """Returns the text of a file with line ends as ``\\n``: UTF-8, or what a byte order mark says it is (UTF-8, UTF-16, UTF-32).

    Raises:
        UsageError: the file cannot be read, or is in another encoding, with the place of the first byte that is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
    return decode_text(data, str(path))


def decode_text(data: bytes, name: str) -> str:
    """Returns the text of ``data`` as :func:`read_text_file` does; ``name`` is what errors call it. Raises UsageError."""
    mark, encoding = next((known for known in _MARKS if data.startswith(known[0])), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        got = f"byte 0x{data[len(mark) + e.start]:02x} in line {line}" if encoding == "utf-8" else f"{encoding.upper()} that breaks off"
        raise UsageError(f"{name}: is not text in UTF-8 ({got}); save it as UTF-8") from e
    if "\0" in text:
        raise UsageError(f"{name}: is not text in UTF-8 (it holds zero bytes, as UTF-16 without a byte order mark does); save it as UTF-8")
    return _LINE_ENDS.sub("\n", text)


def list_entries(path: Path) -> list[str]:
    """Returns the lines of a list, without blanks around them, empty lines, and those that begin with ``#``. Raises UsageError as :func:`read_text_file`."""
    lines = [line.strip() for line in read_text_file(path).split("\n")]
    return [line for line in lines if line and not line.startswith("#")]
