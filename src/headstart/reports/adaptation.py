"""Reports of an adaptation: page, Markdown and model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstart.data.draw import hex_colours
from headstart.models.transfer_model import TransferModel
from headstart.reports.page import LIMITS, page_template

__all__ = ["render_adaptation", "render_adaptation_card", "render_adaptation_text"]

MAP_SIZE = 560.0, 420.0
"""Width and height of a map in SVG units."""
MARGIN = 12.0


def render_adaptation(values: Mapping[str, Any], model: TransferModel) -> str:
    """Render the page: the choice, scores, distances, classes that moved, and maps.

    Parameters
    ----------
    values : mapping
        ``Adaptation.as_dict``, with ``oracles`` (the accuracies as text) and ``maps``.
    model : TransferModel
        The result.
    """
    classes = list(model.task.classes)
    shown = classes[: LIMITS["map_classes"]]
    colours = dict(zip(shown, hex_colours(len(shown)), strict=True))
    maps = {
        moment: {"method": each["method"], "dots": [_dot(p, colours) for p in each["points"]]}
        for moment, each in values["maps"].items()
    }
    return page_template("adaptation.html.j2").render(
        **_common_values(values, model), maps=maps, map_size=MAP_SIZE, colours=list(colours.items())
    )


def render_adaptation_text(values: Mapping[str, Any], model: TransferModel) -> str:
    """Render the report in Markdown, with the values of ``render_adaptation``."""
    return page_template("adaptation.md.j2").render(**_common_values(values, model))


def render_adaptation_card(values: Mapping[str, Any], model: TransferModel) -> str:
    """Render the model card in Markdown, with the values of ``render_adaptation``."""
    return page_template("adaptation_card.md.j2").render(
        **_common_values(values, model), spec=model.backbone.spec, origin=model.backbone.origin
    )


def _common_values(values: Mapping[str, Any], model: TransferModel) -> dict[str, Any]:
    names = list(values["results"][0]["scores"])
    record = model.record.get("adaptation", {})
    return {
        "adaptation": values,
        "rows": list(zip(values["results"], values["oracles"], strict=True)),
        "criteria": [(name, name.replace("_", " ")) for name in names],
        "has_oracle": any(values["oracles"]),
        "distances": [
            (name.replace("_", " "), [each[name] for each in values["distances"].values()])
            for name in next(iter(values["distances"].values()), {})
        ],
        "moves": [move for move in values["moves"] if move["before"] or move["after"]],
        "classes": list(model.task.classes),
        "target_images": record.get("target_images"),
        "source_images": record.get("source_images"),
        "limits": LIMITS,
    }


def _dot(point: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, Any]:
    width, height = (side - 2 * MARGIN for side in MAP_SIZE)
    return {
        "x": round(MARGIN + point["x"] * width, 1),
        "y": round(MARGIN + point["y"] * height, 1),
        "colour": colours.get(point["label"]),
        "label": point["label"],
        "is_target": point["is_target"],
    }
