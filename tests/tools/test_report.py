"""The page holds everything it was given, and loads nothing from outside."""

import base64
import html
import io
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from html_pages import Read, refuse_outside

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from report import Page, Picture, Section, Table, draw_curves, write_page


@pytest.fixture
def page(tmp_path: Path) -> Page:
    Image.new("RGB", (60, 30), "red").save(tmp_path / "red.png")
    Image.new("RGBA", (2800, 700), (0, 0, 255, 128)).save(tmp_path / "blue.png")
    table = Table(caption="of <nets> & more", header=("net", "top-1, %"), rows=(("a", "12.5"), ("b", "50.0")))
    return Page(
        title="Small & <big>",
        lead="What came out.",
        sections=(
            Section(
                title="First", text=("one", "two"), tables=(table,), commands=(("a row", "python a.py --x 'b c'"),)
            ),
            Section(
                title="Second",
                pictures=(
                    Picture(file=tmp_path / "red.png", alt="a red one", caption="red"),
                    Picture(file=tmp_path / "blue.png", alt="a blue one", caption="blue", wide=True),
                ),
            ),
        ),
        made_by="by us",
    )


def test_the_page_shows_every_part(page: Page, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", page)
    read = Read((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert read.open == []
    assert read.text("title") == read.text("h1") == ["Small & <big>"]
    assert read.text("h2") == ["First", "Second"]
    assert read.text("p") == ["What came out.", "one", "two", "by us"]
    assert read.text("caption") == ["of <nets> & more"]
    assert read.text("th") == ["net", "top-1, %", "a", "b"] and read.text("td") == ["12.5", "50.0"]
    assert (read.text("h3"), read.text("code")) == (["a row"], ["python a.py --x 'b c'"])
    assert read.text("figcaption") == ["red", "blue"]
    assert [image["alt"] for image in read.all("img")] == ["a red one", "a blue one"]
    assert {link["href"] for link in read.all("a")} == {f"#{one['id']}" for one in read.all("section")}


def test_pictures_are_embedded_and_nothing_is_loaded(page: Page, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", page)
    read = Read((tmp_path / "page.html").read_text(encoding="utf-8"))
    refuse_outside(read)
    sizes = []
    for attributes in read.all("img"):
        encoded = (attributes["src"] or "").removeprefix("data:image/webp;base64,")
        image = Image.open(io.BytesIO(base64.b64decode(encoded)))
        assert (str(image.width), str(image.height)) == (attributes["width"], attributes["height"])
        sizes.append(image.size)
    assert sizes == [(60, 30), (1400, 350)]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_not_wider_than_the_screen(page: Page, tmp_path: Path, width: int) -> None:
    """At the widths of a desktop and of a phone, laid out by Chromium: wide tables scroll in their own boxes."""
    wide = Table(caption="wide", header=tuple("a header" for _ in range(30)), rows=(tuple("12.5" for _ in range(30)),))
    sections = (*page.sections, Section(title="Wide", tables=(wide,), commands=(("x", "python a.py " + 200 * "x"),)))
    write_page(tmp_path / "page.html", replace(page, sections=sections))
    inner = html.escape((tmp_path / "page.html").read_text(encoding="utf-8"), quote=True)
    measure = "document.title = this.contentDocument.documentElement.scrollWidth"
    outer = f'<iframe srcdoc="{inner}" style="width: {width}px; border: 0" onload="{measure}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><title></title>{outer}", encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,900", "--dump-dom")
    command = (str(CHROMIUM), *flags, (tmp_path / "frame.html").as_uri())
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert f"<title>{width}</title>" in shown


def test_a_picture_without_a_file_or_a_text_alternative_is_refused(page: Page, tmp_path: Path) -> None:
    (tmp_path / "red.png").rename(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"needs .*red\.png, which does not exist: remove its folder and run again"):
        write_page(tmp_path / "page.html", page)
    no_alt = Section(title="x", pictures=(Picture(file=tmp_path / "other.png", alt="", caption="x"),))
    with pytest.raises(ValueError, match=r"other\.png has no text alternative: set its alt"):
        write_page(tmp_path / "page.html", Page(title="x", lead="x", sections=(no_alt,), made_by="x"))
    assert not (tmp_path / "page.html").exists()


def test_learning_curves_are_drawn_side_by_side(tmp_path: Path) -> None:
    one = {"loss": {"a": [(1, 2.0), (2, 1.0)]}}
    draw_curves(tmp_path / "one.png", one, "step")
    draw_curves(tmp_path / "two.png", one | {"other": {"b": [(1, 2.0), (2, 1.0)], "c": [(1, 1.0)]}}, "step")
    with Image.open(tmp_path / "one.png") as small, Image.open(tmp_path / "two.png") as large:
        assert large.width > 1.7 * small.width
