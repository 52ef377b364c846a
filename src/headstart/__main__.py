"""``python -m headstart``: the command line, as launchers of several processes want it."""

from __future__ import annotations

from headstart.cli.app import main

__all__ = []

if __name__ == "__main__":
    main()
