"""A page as its elements."""

from html.parser import HTMLParser

URL = "https://example.org/loss/commit/"


class Elements(HTMLParser):
    """Every element of a page: its tag and attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of_class(self, name):
        return [attrs for _, attrs in self.found if name in (attrs.get("class") or "").split()]
