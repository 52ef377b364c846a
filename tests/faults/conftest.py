"""Faults: kills, failing calls and signals at chosen calls of a forked process.

The tests run in a process that has the libraries loaded. Each fault is a fork of it, which takes
milliseconds. ``make faults`` sets FAULTS=long: more rounds, and a table of the counts at the end.
"""

import os
import signal
import sys
import warnings
from collections import Counter

import pytest

from headstart.errors import HeadstartError

CALLS = frozenset(
    [
        "open",
        "os.rename",
        "os.link",
        "os.symlink",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.truncate",
        "os.chmod",
        "os.listdir",
        "os.scandir",
        "shutil.copyfile",
        "shutil.rmtree",
        "sqlite3.connect",
    ]
)
"""Audit events of the calls that change or read a folder."""
ENDED, RAISED, UNEXPECTED, STOPPED, KILLED = 0, 1, 2, 3, 9
"""Exit codes of a child: the action ended, it raised an error that a user can read, another error,
it was stopped by a signal, it was killed."""
COUNTS: Counter[str] = Counter()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COUNTS:
        terminalreporter.section("faults")
        for name, count in sorted(COUNTS.items()):
            terminalreporter.line(f"{count:>8}  {name}")


def forked(action, at_call=lambda count: None):
    """Run an action in a forked process, and return its exit code; ``at_call`` counts the calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = 0

    def hook(event, _):
        nonlocal count
        if event in CALLS:
            count += 1
            at_call(count)

    code = ENDED
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.addaudithook(hook)
        action()
    except (OSError, HeadstartError):
        code = RAISED
    except KeyboardInterrupt:
        code = STOPPED
    except BaseException:  # noqa: BLE001 - a forked test must not go on
        import traceback

        traceback.print_exc()
        code = UNEXPECTED
    os._exit(code)


@pytest.fixture(scope="session")
def fork():
    """Return ``forked``."""
    return forked


@pytest.fixture(scope="session")
def counts():
    """Return the counter of the table at the end."""
    return COUNTS


@pytest.fixture(scope="session")
def is_long():
    """Whether ``make faults`` runs."""
    return os.environ.get("FAULTS") == "long"
