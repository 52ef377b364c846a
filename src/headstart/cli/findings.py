"""Findings of the checks in files and in JSON."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import UsageError
from headstart.files import csv_text, write_whole

if TYPE_CHECKING:
    from headstart.data.checks.images import Finding
    from headstart.workflows.evaluate import EvaluatedModel

__all__ = ["listed", "require_new_file", "write_findings"]


def listed(evaluated: EvaluatedModel, folder: Path | None) -> dict[str, Any]:
    """Folder and findings of an evaluation for its JSON document, where there are any."""
    messages = [finding.message for finding in evaluated.prepared.findings]
    place = {"folder": str(folder)} if folder else {}
    return {**place, **({"findings": messages} if messages else {})}


def require_new_file(out: Path | None) -> None:
    """Refuse a path for findings that exists, or whose folder does not.

    Raises
    ------
    UsageError
        If the file cannot be new.

    Examples
    --------
    >>> require_new_file(None)
    """
    if out is not None and (out.exists() or not out.parent.is_dir()):
        raise UsageError(
            f"Expected a new file in an existing folder for --out, got {str(out)!r}. Pass another "
            "--out."
        )


def write_findings(out: Path | None, findings: Iterable[Finding]) -> None:
    """Write one line for each finding as CSV: severity, kind, message and its images."""
    if out is not None:
        rows = ([f.severity, f.kind, f.message, *f.paths] for f in findings)
        write_whole(out, csv_text(["severity", "finding", "message", "images"], rows))
