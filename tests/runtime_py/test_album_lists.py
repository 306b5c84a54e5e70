"""Lists of photos and other text files as editors and servers give them: read, or refused in one line."""

import http.server
import threading
from pathlib import Path

import pytest
from albums import files, photo, run
from f2i_runtime.album.album_plan import plan_album
from f2i_runtime.album.download import fetch, url_file_name
from f2i_runtime.errors import PhotoError, UsageError
from f2i_runtime.photo.photo_listing import photo_files

ENCODINGS = {
    "utf-8": ("é.png", "utf-8"),
    "bom": ("é.png", "utf-8-sig"),
    "utf-16": ("é.png", "utf-16"),
    "utf-16-be": ("é.png", "utf-16-be-bom"),
    "latin-1": (None, "latin-1"),
    "utf-16-bare": (None, "utf-16-le"),
}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_lists_from_any_editor(tmp_path, name, ends):
    wanted, encoding = ENCODINGS[name]
    photo(tmp_path / "é.png")
    text = ends.join(["# mine", str(tmp_path / "é.png"), ""])
    data = b"\xfe\xff" + text.encode("utf-16-be") if encoding.endswith("bom") else text.encode(encoding)
    (tmp_path / "list.TXT").write_bytes(data)
    for find in (
        lambda: [s.location for s in plan_album([str(tmp_path / "list.TXT")], tmp_path / "out").sources],
        lambda: photo_files(tmp_path / "list.TXT"),
    ):
        if wanted:
            assert [Path(p).name for p in find()] == [wanted]
        else:
            with pytest.raises(UsageError, match="save it as UTF-8") as caught:
                find()
            assert "\n" not in str(caught.value)


def read_recipe(path):
    from f2i_quantize.ptq.recipe import load_recipe

    return load_recipe(str(path))


def read_summary(path):
    from f2i_runtime.validation.results import read_report

    return read_report(path)


def read_manifest(path):
    from f2i_runtime.bundle.store import open_bundle

    return open_bundle(path.rename(path.with_name("manifest.json")).parent)


def read_checkpoint(path):
    from f2i_quantize.models.checkpoint import load

    return load(path.rename(path.with_name("model_index.json")).parent)


def read_bench(path):
    from f2i_bench.core.protocol import read_bench as read

    return read(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1", "utf-16-le"])
@pytest.mark.parametrize("read", [read_recipe, read_summary, read_manifest, read_checkpoint, read_bench])
def test_files_from_any_editor_are_read_or_refused_in_one_line(tmp_path, read, encoding):
    text = 'description = "é"\r\n' if read is read_recipe else '{"description": "é"}\r\n'
    path = tmp_path / "file.toml"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(UsageError) as caught:
        read(path)
    refused = encoding in ("latin-1", "utf-16-le")
    assert ("save it as UTF-8" in str(caught.value)) == refused, "what can be read is refused for what it holds, not for its encoding"
    assert "\n" not in str(caught.value)


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.server.body
        self.send_response(200)
        if self.path.startswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(body) + body[: len(body) // 2])
            self.close_connection = True
            return
        if self.path.startswith("/cut"):
            self.send_header("Content-Length", str(len(body) + 10))
        elif self.path.startswith("/odd"):
            self.send_header("Content-Length", "many")
        elif not self.path.startswith("/endless"):
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.body = photo(tmp_path / "served" / "photo.png").read_bytes()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["/chunked.png", "/cut.png", "/a\x7fb c.png", "/["])
def test_a_url_that_fails_says_so_in_one_line(site, tmp_path, path):
    url = site + path if path != "/[" else "http://[nowhere/a.png"
    if " " in path:
        fetch(url, tmp_path / "x")
        return
    with pytest.raises(PhotoError, match=r"cannot be downloaded|bytes came") as caught:
        fetch(url, tmp_path / "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/endless.png", "/whole.png", "/odd.png"])
def test_the_limit_holds_whatever_the_server_says(site, tmp_path, path):
    fetch(site + path, tmp_path / "x", limit=1 << 20)
    with pytest.raises(PhotoError, match="at most"):
        fetch(site + path, tmp_path / "x", limit=100)
    assert (tmp_path / "x").stat().st_size <= 1 << 20


def test_names_from_urls():
    assert url_file_name("https://h/a%20b.jpg?x=1") == "a b.jpg"
    for url in ("https://h/..", "https://h/", "https://h", "http://[bad/x", "https://h/%2e%2e%2f%2e%2e"):
        assert url_file_name(url) == "photo"
    assert url_file_name("https://h/..%2f..%5cetc%00passwd") == "etcpasswd"
    assert len(url_file_name("https://h/" + "é" * 400)) <= 120


def test_one_bad_entry_does_not_end_the_album(tiny_bundle, site, tmp_path):
    good = photo(tmp_path / "good.png")
    (tmp_path / "empty").mkdir()
    entries = [
        f"{site}/a b.png",
        f"{site}/chunked.png",
        "http://[nowhere/a.png",
        str(tmp_path / "gone.png"),
        str(tmp_path / "empty"),
        "list.txt",
        str(good),
    ]
    (tmp_path / "list.txt").write_text("\n".join(e if e != "list.txt" else str(tmp_path / "list.txt") for e in entries))
    result = run(tiny_bundle, tmp_path / "list.txt", "--out", tmp_path / "out")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert files(tmp_path / "out") == {"a b_x2.png", "good_x2.png"}
    assert "5 of 7 photos could not be done" in result.stderr
    for words in ("cut short", "no such photo", "holds no photos", "leads back to itself (list.txt → list.txt)"):
        assert words in result.stderr
    assert "/tmp/f2i-download" not in result.stderr


def test_lists_that_name_one_another_end(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.txt").write_text(f"{tmp_path / other}.txt\n{tmp_path / other}.txt\n")
    with pytest.raises(UsageError, match="leads back to itself") as caught:
        plan_album([str(tmp_path / "a.txt")], tmp_path / "out")
    assert "\n" not in str(caught.value)
