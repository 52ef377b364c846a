"""Extension for the API reference: examples that follow a sentence directly are examples, too.

The docstrings of short functions have no heading above their `>>>` lines.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


def with_heading(text: str) -> str:
    """Put the heading of NumPy's style above the first example, unless there is one.

    >>> print(with_heading("Add." + chr(10) * 2 + ">>> 1 + 1" + chr(10) + "2"))
    Add.
    <BLANKLINE>

    Examples
    --------
    >>> 1 + 1
    2
    """
    if ">>>" not in text or re.search(r"^\s*Examples\n\s*-{3,}", text, re.MULTILINE):
        return text
    return re.sub(r"^( *)(?=>>>)", r"\1Examples\n\1--------\n\1", text, count=1, flags=re.MULTILINE)


class ExampleHeadings(Extension):
    """Add the heading to every docstring that needs it."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of a module, class or function."""
        if obj.docstring is not None:
            obj.docstring.value = with_heading(obj.docstring.value)
