"""Make the README's picture of the report: run the demo, open its report, take a screenshot.

    python docs/make_screenshots.py [report.html]

Needs headless Chromium (a package of most Linux distributions). Without an argument, `headstart fit
demo:scenes` runs first, in a temporary folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
SIZE = (1100, 900)
MAX_BYTES = 150_000
RAW = argparse.RawDescriptionHelpFormatter
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def run_demo(folder: Path) -> Path:
    """Train on the demo's photographs and return the path of the report."""
    command = [sys.executable, "-m", "headstart", "fit", "demo:scenes", "--offline"]
    command += ["--out", str(folder / "demo")]
    subprocess.run(command, check=True)  # noqa: S603 - a fixed command
    return folder / "demo" / "report.html"


def take_screenshot(page: Path, target: Path, folder: Path) -> None:
    """Draw the top of a page as a PNG file."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"Found none of the browsers {', '.join(BROWSERS)}. Install Chromium.")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'browser'}", f"--window-size={SIZE[0]},{SIZE[1]}"]
    command += [f"--screenshot={target}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603 - as above


def reduce_colours(source: Path, target: Path) -> int:
    """Save a PNG file with at most 150 kB, with as many colours as fit; return its bytes."""
    image = Image.open(source).convert("RGB")
    for colours in (256, 128, 64, 32):
        image.quantize(colours).save(target, optimize=True)
        if target.stat().st_size <= MAX_BYTES:
            return target.stat().st_size
    sys.exit(f"{target} has {target.stat().st_size} bytes, more than {MAX_BYTES}. Reduce SIZE.")


def main() -> None:
    """Write docs/images/report.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("report", nargs="?", type=Path, help="page to draw; default: run the demo")
    report = parser.parse_args().report
    if report is not None and not report.is_file():
        parser.error(f"{report} is no file. Pass the report.html of a run.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = report or run_demo(folder)
        take_screenshot(page, folder / "page.png", folder)
        IMAGES.mkdir(exist_ok=True)
        size = reduce_colours(folder / "page.png", IMAGES / "report.png")
    sys.stdout.write(f"{IMAGES / 'report.png'}: {size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
