"""A model folder and a cache that nobody may write serve the verbs that only read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAVED = Path(__file__).parents[1] / "golden" / "saved"

# Root may write everywhere, so the hook refuses what the system would refuse to others.
REFUSING = """
import errno, os, sys
from pathlib import Path

locked = [os.path.realpath(path) for path in sys.argv[1].split(os.pathsep)]
sys.argv[1:] = sys.argv[2:]

def is_locked(path):
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    return os.path.realpath(os.fsdecode(path)).startswith(tuple(locked))

def refuse(event, arguments):
    writes = event in {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
    if event == "open":
        flags = arguments[2] or 0
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    if writes and any(is_locked(path) for path in arguments[:2]):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))

allowed = os.access
os.access = lambda path, mode: allowed(path, mode) and not (mode == os.W_OK and is_locked(path))
sys.addaudithook(refuse)
from headstart.cli.app import main
main()
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("locked")
    shutil.copytree(SAVED / "probe", root / "model")
    (root / "cache").mkdir()
    return root


def run(places, *arguments):
    locked = os.pathsep.join(str(places / name) for name in ("model", "cache"))
    environment = {**os.environ, "HEADSTART_CACHE": str(places / "cache")}
    command = [sys.executable, "-c", REFUSING, locked, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verb", ["predict", "evaluate", "doctor"])
def test_verbs_that_only_read_need_no_place_to_write(places, verb):
    before = files(places)
    arguments = {
        "predict": (places / "model", SAVED / "photos", "--json"),
        "evaluate": (places / "model", SAVED / "photos", "--allow-overlap", "--json"),
        "doctor": ("--json",),
    }[verb]
    done = run(places, verb, *arguments)
    document = json.loads(done.stdout)
    note = document["cache notes"] if verb == "doctor" else " ".join(done.stderr.split())
    assert "cannot be written" in note
    assert files(places) == before
