import hashlib
import http.server
import threading

import pytest
from ade_tree import make_tree, zip_tree

import cae_seg.data.prepare.download as module
from cae_seg.data.prepare.download import download
from cae_seg.data.prepare.prepare import prepare
from cae_seg.errors import UserError

CONTENT = bytes(range(256)) * 2000


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, badly where error so."""

    daemon_threads = True
    content, tag, ranges, status = CONTENT, '"one"', True, 200
    breaks = 0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.sent = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/folder/ade.zip?key=1"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") == server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = server.content[start:]
        if start and not body:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        self.send_response(206 if start else server.status)
        self.send_header("Content-Length", str(len(body)))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: len(body) // 2]
        server.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(module, "CHUNK", 1000)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_whole_file_arrives(server, tmp_path):
    target = download(server.url, tmp_path / "ade.zip")
    assert target.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["ade.zip"]


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    download(server.url, tmp_path / "ade.zip")
    download(server.url, tmp_path / "ade.zip", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert len(server.asked) == 1


def test_a_broken_download_resumes_where_it_broke(server, tmp_path):
    server.breaks = 3
    assert download(server.url, tmp_path / "ade.zip").read_bytes() == CONTENT
    assert server.asked[0] is None
    assert all(server.asked[1:])
    assert server.sent == len(CONTENT)


def test_a_later_start_resumes(server, tmp_path):
    server.breaks = module.TRIES
    with pytest.raises(UserError, match="what has arrived is kept"):
        download(server.url, tmp_path / "ade.zip")
    assert not (tmp_path / "ade.zip").exists()
    assert download(server.url, tmp_path / "ade.zip").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_whole_part_of_a_killed_process_is_taken(server, tmp_path):
    (tmp_path / "ade.zip.part").write_bytes(CONTENT)
    (tmp_path / "ade.zip.part.etag").write_text(server.tag)
    assert download(server.url, tmp_path / "ade.zip").read_bytes() == CONTENT
    assert server.sent == 0


def test_file_that_changed_meanwhile_is_never_mixed(server, tmp_path):
    (tmp_path / "ade.zip.part").write_bytes(b"x" * 1000)
    (tmp_path / "ade.zip.part.etag").write_text('"older"')
    assert download(server.url, tmp_path / "ade.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("lack", [{"ranges": False}, {"tag": None}, {"tag": 'W/"weak"'}])
def test_server_that_cannot_resume_is_asked_for_all(server, tmp_path, lack):
    for name, value in lack.items():
        setattr(server, name, value)
    server.breaks = 1
    assert download(server.url, tmp_path / "ade.zip").read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(UserError, match="its sha256 is"):
        download(server.url, tmp_path / "ade.zip", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_reported(server, tmp_path):
    server.status = 404
    with pytest.raises(UserError, match="the server answers 404"):
        download(server.url, tmp_path / "ade.zip")
    assert list(tmp_path.iterdir()) == []


def test_no_server(server, tmp_path):
    url = "http://127.0.0.1:9/ade.zip"
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/ade\.zip: cannot be downloaded") as error:
        download(url, tmp_path / "ade.zip")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["ftp://host/ade.zip", "s3://bucket/ade.zip"])
def test_other_schemes_are_refused(url, tmp_path):
    with pytest.raises(UserError, match="only http and https"):
        download(url, tmp_path / "ade.zip")


def test_a_host_name_that_is_too_long_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be downloaded"):
        download(f"http://{'a' * 300}/ade.zip", tmp_path / "ade.zip")


def test_prepare_from_a_url(server, tmp_path):
    archive = zip_tree(make_tree(tmp_path / "made"), tmp_path / "a.zip")
    server.content = archive.read_bytes()
    root, manifest = tmp_path / "data", tmp_path / "data" / "manifest.json"
    server.breaks = 1
    first = prepare(server.url, root, manifest)
    assert first.counts == {"training": 3, "validation": 2}
    asked = len(server.asked)
    assert prepare(server.url, root, manifest) == first
    assert len(server.asked) == asked
