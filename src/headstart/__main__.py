"""``python -m headstart``: the command line, in a form that ``torchrun -m`` can start."""

from __future__ import annotations

from headstart.cli.app import main

__all__ = []

if __name__ == "__main__":
    main()
