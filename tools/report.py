"""A page of results as one self-contained HTML file: tables, pictures and commands.

from report import Page, Picture, Section, Table, write_page
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from stillroom.backbone.atomic import write_file

TEMPLATE = "report.html.j2"
WIDEST = 1400
"""Pixels; wider pictures are scaled down."""

Curve = Sequence[tuple[float, float]]
"""(step, value)"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; the first cell of a row is its name."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file to embed.

    Args:
        file: the image, in a format that Pillow reads.
        alt: the text alternative.
        caption: the text below it.
        wide: keep its width on a small screen, and scroll it in a box of its own.
    """

    file: Path
    alt: str
    caption: str
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page under a heading; `commands` holds pairs of an output's title and its command."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a page: title, lead sentence, sections, and the command that made it."""

    title: str
    lead: str
    sections: tuple[Section, ...]
    made_by: str


def write_page(path: Path, page: Page) -> None:
    """Write a page with its pictures embedded.

    Args:
        path: the .html file.
        page: its content.

    Raises:
        ValueError: a picture without its file or its text alternative.
    """
    for picture in (picture for section in page.sections for picture in section.pictures):
        if not picture.file.is_file():
            raise ValueError(f"{path} needs {picture.file}, which does not exist: remove its folder and run again")
        if not picture.alt:
            raise ValueError(f"{picture.file} has no text alternative: set its alt")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = embedded
    write_file(path, environment.get_template(TEMPLATE).render(page=page))


def embedded(picture: Picture) -> dict[str, str | int]:
    """The attributes of an <img>: the picture as WebP in a data URI, and its size in pixels."""
    with Image.open(picture.file) as opened:
        image = opened.convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"src": f"data:image/webp;base64,{encoded}", "width": image.width, "height": image.height}


def draw_curves(path: Path, panels: Mapping[str, Mapping[str, Curve]], xlabel: str) -> None:
    """Draw learning curves, one panel per quantity and one line per run.

    Args:
        path: the PNG to write.
        panels: quantity -> run -> curve.
        xlabel: label of every panel's x axis.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # `quickstart.py --help` needs none

    from stillroom.runs.figures import escape, save  # noqa: PLC0415

    figure = Figure(figsize=(4.2 * len(panels), 3.4))
    for column, (quantity, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), column, title=escape(quantity), xlabel=xlabel)
        for name, curve in curves.items():
            axes.plot(
                *zip(*curve, strict=True), label=escape(name), marker="o" if len(curve) < 12 else None, markersize=3
            )
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.legend(frameon=False)
    figure.tight_layout()
    save(figure, path)
