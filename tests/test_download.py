"""Fetching from a server on this machine."""

import functools
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest

from lossmap.download import fetch, fetch_cifar10c


@pytest.fixture
def server(tmp_path):
    """A folder, and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if self.path == "/short.bin":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(bytes(10))
            else:
                super().do_GET()

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def left(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_a_file_is_fetched_checked_and_not_fetched_again(server, tmp_path):
    folder, address = server
    content = bytes(range(256)) * 10000
    (folder / "a.bin").write_bytes(content)
    told = []
    sums = {"md5": hashlib.md5(content).hexdigest(), "sha256": hashlib.sha256(content).hexdigest()}
    got = fetch(f"{address}/a.bin?download=1", tmp_path / "to", **sums, progress=lambda *a: told.append(a))
    assert got.read_bytes() == content and left(tmp_path / "to") == ["a.bin"]
    assert told[-1] == (len(content), len(content))
    (folder / "a.bin").unlink()
    assert fetch(f"{address}/a.bin", tmp_path / "to", md5=sums["md5"]) == got


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    folder, address = server
    (folder / "a.bin").write_bytes(b"right")
    (tmp_path / "a.bin").write_bytes(b"wrong")
    assert fetch(f"{address}/a.bin", tmp_path, sha256=hashlib.sha256(b"right").hexdigest()).read_bytes() == b"right"


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    folder, address = server
    (folder / "a.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"is not the file: its md5 is .*, expected 0+; nothing was saved"):
        fetch(f"{address}/a.bin", tmp_path / "to", md5="0" * 32)
    assert not (tmp_path / "to").exists()
    with pytest.raises(ValueError, match="a file is fetched only with its checksum: md5 or sha256"):
        fetch(f"{address}/a.bin", tmp_path / "to")


def test_where_there_is_no_network_it_is_said_what_to_do(server, tmp_path):
    _, address = server
    for url in ("http://127.0.0.1:9/a.tar", f"{address}/none.tar", f"{address}/short.bin"):
        with pytest.raises(ConnectionError, match=r"cannot be reached .*; fetch it on a machine with a network"):
            fetch(url, tmp_path / "to", md5="0" * 32)
        assert not (tmp_path / "to").exists()


def test_cifar10c_is_unpacked_and_ready(server, tmp_path):
    folder, address = server
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, array in (("fog", np.zeros((5, 32, 32, 3), np.uint8)), ("labels", np.arange(5))):
            part = io.BytesIO()
            np.save(part, array)
            entry = tarfile.TarInfo(f"CIFAR-10-C/{name}.npy")
            entry.size = part.tell()
            part.seek(0)
            tar.addfile(entry, part)
    (folder / "CIFAR-10-C.tar").write_bytes(held.getvalue())
    url, md5 = f"{address}/CIFAR-10-C.tar", hashlib.md5(held.getvalue()).hexdigest()
    to = fetch_cifar10c(tmp_path / "to", url=url, md5=md5)
    from lossmap.data.datasets import load

    assert load("cifar10c:fog:2", "test", data_path=to).tensors[1].tolist() == [1]
    assert left(tmp_path / "to") == ["CIFAR-10-C", "CIFAR-10-C.tar"]
    (to / "fog.npy").unlink()
    assert (fetch_cifar10c(tmp_path / "to", url=url, md5=md5) / "fog.npy").exists()
