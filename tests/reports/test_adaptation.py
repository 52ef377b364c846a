"""Page, Markdown and card of an adaptation: complete, escaped, and bounded."""

import re
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headstart.evaluation.domain_change import find_moves, map_domains
from headstart.reports.adaptation import (
    render_adaptation,
    render_adaptation_card,
    render_adaptation_text,
)

HOSTILE = "<script>alert('x')</script>"


def values_of(classes: list[str], *, oracle: str = "", better: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    n = len(classes)
    features = rng.normal(size=(12, 4)), rng.normal(size=(14, 4))
    names = [classes[i % n] for i in range(12)], [classes[i % n] for i in range(14)]
    drawn = map_domains(features, names).as_dict()
    before, after = np.arange(14) % n, (np.arange(14) // 2) % n
    scores = {"mean_entropy": 0.51234, "mutual_information": 0.61234}
    results = [
        {"method": "source", "scores": scores, "objections": []},
        {"method": "coral", "scores": scores, "objections": [] if better else ["It is | not."]},
    ]
    return {
        "chosen": "coral" if better else "source",
        "is_better": better,
        "summary": ["Adapted by coral; chosen without labels of the target."],
        "results": results,
        "oracles": [oracle] * 2,
        "distances": {"before": {"mmd": 0.25}, **({"after": {"mmd": 0.125}} if better else {})},
        "moves": [asdict(m) for m in find_moves(classes, (before, after))] if better else [],
        "maps": {"before": drawn, **({"after": drawn} if better else {})},
    }


def model_of(classes: list[str]) -> Any:
    spec = SimpleNamespace(name="timm/resnet18", licence="")
    return SimpleNamespace(
        task=SimpleNamespace(classes=tuple(classes)),
        backbone=SimpleNamespace(spec=spec, origin={"sha256": "abc"}),
        record={"adaptation": {"target_images": 1400, "source_images": None}},
    )


def test_the_page_shows_scores_distances_moves_and_both_maps() -> None:
    classes = [HOSTILE, "cat"]
    page = render_adaptation(values_of(classes, oracle="0.8 [0.7, 0.9]"), model_of(classes))
    assert HOSTILE not in page
    assert page.count("<svg") == 2
    assert page.count("<circle") == 24
    assert page.count('<rect x="-4"') == 28
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    for part in ("mutual information", "0.6123", "oracle", "0.8 [0.7, 0.9]", "mmd 0.25 0.125"):
        assert part in text
    assert "Classes that moved" in text
    assert not re.search(r'(?:src|href)="http', page)


def test_a_source_model_that_is_kept_has_no_moves() -> None:
    values, model = values_of(["a", "b"], better=False), model_of(["a", "b"])
    page = render_adaptation(values, model)
    assert page.count("<svg") == 1
    assert "Classes that moved" not in page
    assert "oracle" not in page
    assert render_adaptation_card(values, model).startswith("# Source model, not adapted")


@pytest.mark.parametrize("oracle", ["", "0.8"])
def test_tables_have_equal_rows_and_the_card_ends_with_its_usage(oracle: str) -> None:
    classes = [f"class | {i}" for i in range(60)]
    values, model = values_of(classes, oracle=oracle), model_of(classes)
    for text in (render_adaptation_text(values, model), render_adaptation_card(values, model)):
        for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
            assert re.fullmatch(r"(\|-+)+\|", table.splitlines()[1])
        assert len(re.findall(r"^\|", text, flags=re.MULTILINE)) < 50
    card = render_adaptation_card(values, model)
    assert "1,400 target images without labels." in card
    assert "find out before you publish" in card
    assert ("label 50 to 100 target images" in card) == (not oracle)
    assert card.rstrip().endswith("headstart evaluate FOLDER images/\n```")
