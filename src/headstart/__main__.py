"""``python -m headstart``: the command line, as launchers of several processes want it."""

from headstart.cli import main

if __name__ == "__main__":
    main()
