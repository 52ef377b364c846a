"""Drawings, page and numbers agree with each other, and one bad image spoils none of the rest."""

from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np

from headstart.data.dataset import Sample
from headstart.data.transforms.preprocess import Preprocess
from headstart.evaluation.explain import Explanation
from headstart.reports.explanations import explanation_rows, write_explanations

SMALL = Preprocess(
    resize=40, crop=32, interpolation="bilinear", mean=(0.45, 0.45, 0.45), std=(0.2, 0.2, 0.2)
)


class Page(HTMLParser):
    """Images and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.images, self.text, self.policy = [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert tag not in {"script", "link", "iframe"}
        if tag == "img":
            self.images.append(unquote(found["src"]))
            assert found["alt"]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]

    def handle_data(self, data):
        self.text += data


def heat(name, **changes):
    settings = {
        "name": name,
        "label": "cat",
        "probability": 0.25,
        "prediction": "<dog>",
        "method": "occlusion",
        "heat": np.full((4, 4), -0.1),
        "part": (0.0, 0.0, 1.0, 1.0),
    }
    return Explanation(**(settings | changes))


def test_the_page_says_what_a_map_is_worth(tmp_path):
    sample = Sample(image=np.zeros((20, 20, 3), np.uint8))
    found = [heat("a.png"), heat("b.png", heat=np.eye(4) * 0.2, prediction="cat")]
    write_explanations(tmp_path / "maps", [(sample, one) for one in found], title="pets")
    text = Page((tmp_path / "maps" / "index.html").read_text()).text
    assert "covering a region never lowers it" in text
    assert "predicted: <dog>" in text
    assert "covering the brightest region lowers it by 0.20" in text
    assert [row["most"] for row in explanation_rows(found)] == [0, 0.2]


# ------------------------------------------------------------------------- the verb
