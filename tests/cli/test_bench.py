"""The command bench: its table and its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from headstart.cli.app import app


def test_a_table_and_json(classifier: Any, tmp_path: Path) -> None:
    classifier.save(tmp_path / "run")
    words = ["bench", str(tmp_path / "run"), "--formats", "torch", "--images", "20"]
    printed = CliRunner().invoke(app, [*words, "--target", "0.001ms"])
    assert printed.exit_code == 0
    assert "p95 ms" in printed.stdout
    assert "No row is within 0.001 ms" in " ".join(printed.stdout.split())
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [row["format"] for row in document["rows"]] == ["torch"]
    assert document["best"] is None
