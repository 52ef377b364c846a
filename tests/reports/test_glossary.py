"""Terms on a report page: one source, in place, and without a network."""

import re
from pathlib import Path

import pytest
from tests.test_docs import load_script

from headstart.evaluation import classification, detection, segmentation
from headstart.reports.glossary import MARK, add_terms, link_term, term_id

ROOT = Path(__file__).parents[2]
TERMS = load_script("list_terms")


def test_the_file_holds_the_words_of_the_glossary() -> None:
    assert TERMS.FILE.read_text(encoding="utf-8") == TERMS.content(), "run: docs/list_terms.py"


def test_every_heading_has_a_plain_sentence() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    found = TERMS.terms(glossary)
    assert len(found) == len(re.findall(r"^### ", glossary, re.MULTILINE))
    for heading, text in found.items():
        assert len(text) > 20, heading
        assert text.endswith(".")
        assert not re.search(r"\\|```|\]\(|\.md\b|\$", text), heading


@pytest.mark.parametrize(
    "title",
    [
        *classification.TITLES.values(),
        *detection.TITLES.values(),
        *segmentation.TITLES.values(),
    ],
)
def test_the_name_of_every_score_is_linked_to_its_meaning(title: str) -> None:
    link = str(link_term(title))
    target = re.search(r'href="#(term-[\w-]+)"', link)
    assert target is not None
    page = add_terms(f"<p>{link}</p><dl>{MARK}</dl>")
    assert f'<dt id="{target[1]}">' in page


@pytest.mark.parametrize(
    ("title", "heading"),
    [
        ("AUROC", "AUROC"),
        ("log-loss", "Log loss"),
        ("calibration error", "ECE"),
        ("macro F1", "F1 and macro F1"),
        ("mean Dice", "Dice"),
        ("mean IoU", "Mean IoU"),
        ("boundary F", "Boundary F"),
        ("mAP at .50", "AP and mAP"),
        ("pixel accuracy", "Pixel accuracy"),
        ("recall, 100 boxes per image", "Precision and recall"),
    ],
)
def test_a_score_has_its_own_entry(title: str, heading: str) -> None:
    assert f'href="#{term_id(heading)}"' in str(link_term(title))


def test_only_the_terms_of_the_page_are_listed_and_text_is_escaped() -> None:
    page = add_terms(f"<style>.soup {{}}</style><p>AUROC of runs</p><pre>Dice</pre>{MARK}")
    assert re.findall(r'<dt id="(term-[^"]*)"', page) == ["term-auroc", "term-run"]
    assert link_term("a <b>") == "a &lt;b&gt;"
    assert "term" not in str(link_term("ear"))  # not the abbreviation EAR, nor a part of a word
