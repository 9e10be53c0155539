"""Images behind a web server: what it refuses or lacks is said by name. Needs aiohttp, fsspec's driver for HTTP."""

import http.server
import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stillroom.backbone import InputSpec
from stillroom.images import EvaluationView, ImageDataset, SourceError, read_unlabelled
from stillroom.images.loaders import EvaluationBatches, build_loader
from stillroom.runs import Run

pytest.importorskip("aiohttp")


class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; what `faults` holds is how it fails."""

    faults: dict[str, Any]

    def log_message(self, *words: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        if "status" in self.faults:
            self.send_error(self.faults["status"])
        else:
            super().do_HEAD()

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if "status" in self.faults:
            self.send_error(self.faults["status"])
        elif not file.is_file() or (asked is None and "cut" not in self.faults) or "no ranges" in self.faults:
            super().do_GET()
        else:
            content, first = file.read_bytes(), int(asked[1]) if asked else 0
            part = content[first : int(asked[2]) + 1 if asked and asked[2] else None]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[:5] if "cut" in self.faults else part)
            self.close_connection = True


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Serve a folder of this test; the address of the folder, by its faults."""
    servers = []

    def start(**faults: Any) -> tuple[str, dict[str, Any]]:
        handler = type("Faulty", (Server,), {"faults": faults})
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), lambda *words: handler(*words, directory=str(tmp_path / "www"))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", faults

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def www(tmp_path: Path) -> Path:
    """Two images, their list, and a tar file of them."""
    root = tmp_path / "www"
    (root / "images").mkdir(parents=True)
    with tarfile.open(root / "0.tar", "w") as tar:
        for number in range(2):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (90 * number, 9, 9)).save(buffer, "PNG")
            (root / "images" / f"{number}.png").write_bytes(buffer.getvalue())
            tar.add(root / "images" / f"{number}.png", f"{number}.png")
    (root / "list.txt").write_text("images/0.png\nimages/1.png\n")
    return root


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "there is no permission to read {}"), (500, "{} cannot be read: 500"), (404, "there is no {}")],
)
@pytest.mark.parametrize("name", ["0.tar", "list.txt", "t.csv", "images.zip", "images", "t.parquet"])
def test_an_answer_of_the_server_is_said_as_what_it_is(
    www: Path, serve: Callable[..., Any], status: int, words: str, name: str
) -> None:
    place = f"{serve(status=status)[0]}/{name}"
    with pytest.raises(ValueError, match=re.escape(words.format(place))):
        read_unlabelled(place)


def test_a_server_that_is_off_is_not_called_a_missing_file(www: Path) -> None:
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/0\.tar cannot be read: Cannot connect"):
        read_unlabelled("http://127.0.0.1:9/0.tar")


def test_tars_and_lists_are_read_over_http(www: Path, serve: Callable[..., Any]) -> None:
    place, _ = serve()
    for name in ("0.tar", "list.txt"):
        source = read_unlabelled(f"{place}/{name}")
        assert [source.read(index) for index in range(2)] == [
            (www / "images" / f"{index}.png").read_bytes() for index in range(2)
        ]
        assert source.fingerprint and source.content == read_unlabelled(www / "images").content


def test_a_server_without_ranges_is_refused_for_tars_and_enough_for_whole_images(
    www: Path, serve: Callable[..., Any]
) -> None:
    place, _ = serve(**{"no ranges": True})
    assert read_unlabelled(f"{place}/list.txt").content == read_unlabelled(www / "images").content
    with pytest.raises(ValueError, match=r"/0\.tar: its server sends the whole file for a part of it"):
        assert read_unlabelled(f"{place}/0.tar").content


def test_a_folder_of_a_web_server_is_not_read_as_a_list(www: Path, serve: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="/images/ is a web page, not a list of images: over HTTP pass"):
        read_unlabelled(f"{serve()[0]}/images/")


def test_an_image_whose_transfer_ends_early_is_broken_and_a_shard_stops(
    www: Path, serve: Callable[..., Any], run: Run
) -> None:
    place, faults = serve()
    loose, shard = read_unlabelled(f"{place}/list.txt"), read_unlabelled(f"{place}/0.tar")
    faults["cut"] = True
    dataset = ImageDataset(loose, EvaluationView(InputSpec(size=8)), on_broken="skip")
    (batch,) = build_loader(dataset, EvaluationBatches(2, 2, run), 0)
    assert len(batch.broken) == 2 and "images/0.png cannot be read as an image" in batch.broken[0]
    with pytest.raises(SourceError, match=r"0\.tar cannot be read any more"):
        shard.read(0)
