"""Read HTML pages in tests."""

from html.parser import HTMLParser

OUTSIDE = ("href", "src", "srcset", "action", "data", "poster")
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Read(HTMLParser):
    """A page's elements and the text of each kind of element; asserts that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        return [words for name, words in self.texts if name == tag]


def refuse_outside(page: Read) -> None:
    """Assert that the page loads no file and nothing from the network."""
    for _, attributes in page.elements:
        for name in OUTSIDE:
            if (value := attributes.get(name)) is not None:
                assert value.startswith(("data:image/webp;base64,", "#")), value[:60]
    assert not page.all("link") and not page.all("script") and not page.all("iframe")
    styles = "".join(page.text("style"))
    assert "url(" not in styles and "@import" not in styles
