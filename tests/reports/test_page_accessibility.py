"""Every kind of page in a browser: WCAG by axe-core, light and dark, and no network request.

Needs Chromium and chromedriver. Without them the test is skipped; with REQUIRE_BROWSER=1, as in
.ci/run, it fails.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from axe_core_python.selenium import Axe
from PIL import Image
from typer.testing import CliRunner

import headstart
from headstart.cli.app import app
from headstart.data.readers import read_dataset

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--no-first-run",
)  # fmt: skip
TINY = "timm/test_resnet"
COLOURS = {"blue": (60, 80, 160), "green": (70, 140, 70), "grey": (110, 110, 110)}
UNFOLD = "for (const each of document.querySelectorAll('details:not(.zoom)')) each.open = true"
HIGHEST = 7000  # pixels, before a section is unfolded
LOCAL = ("file:", "data:", "chrome:", "about:", "devtools:")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Any]:
    """One headless Chromium for all pages."""
    from selenium import webdriver

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        missing = f"found the browser {program} and the driver {driver}, need both"
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(f"{missing}: apt-get install chromium chromium-driver")
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={folder / 'browser'}"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=driver)
    chromium = webdriver.Chrome(options=options, service=service)
    yield chromium
    chromium.quit()


def tiny_backbone(folder: Path) -> str:
    """A small network with weights drawn here: the pages do not depend on its accuracy."""
    from safetensors.torch import save_file

    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve

    state = load(resolve(TINY), pretrained=False, seed=1).trunk.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "tiny.safetensors")
    return f"file:{folder / 'tiny.safetensors'}@{TINY}"


def draw_photos(root: Path, seed: int, each: int) -> Path:
    """Class folders with noise around a colour, hard enough that there are mistakes."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(each):
            noise = rng.normal(0, 70, (64, 80, 3)) + rng.normal(0, 25, 3)
            pixels = np.clip(noise + colour, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


def spoil(photos: Path) -> Path:
    """A copy in another class and an unreadable file, so that the page has all its sections."""
    (photos / "grey" / "copy.png").write_bytes((photos / "blue" / "00.png").read_bytes())
    (photos / "grey" / "broken.png").write_bytes(b"<html>")
    return photos


def run_command(*words: object) -> None:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def pages(folder: Path) -> dict[str, Path]:
    """Every kind of page, from real runs on a few drawn images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tiny, shared = tiny_backbone(folder), {"engine": "fp32", "device": "cpu"}
    photos = draw_photos(folder / "photos", seed=0, each=20)
    classifier = headstart.fit(photos, backbone=tiny, budget=0, out=folder / "classes", **shared)
    assert not classifier.evaluation.correct.all()
    for task in ("boxes", "masks"):
        data = read_dataset(f"demo:{task}").subset(range(24))
        training = {"method": "finetune", "train_from": "head", "epochs": 1, "size": 64}
        head = {"boxes": "ssdlite", "masks": "fpn"}[task]
        out = folder / task
        headstart.fit(data, backbone=tiny, head=head, out=out, **training, **shared)
    others = draw_photos(folder / "others", seed=1, each=6)
    run_command("evaluate", folder / "classes", others, "--out", folder / "evaluated")
    run_command("explain", folder / "classes", others / "blue", "--out", folder / "explained")
    methods = ("--methods", "probe,scratch", "--seeds", 3, "--folds", 0, "--epochs", 1)
    compared = ("--fractions", "0.5,1", "--backbones", tiny, "--out", folder / "compared")
    run_command("compare", photos, *methods, *compared, "--device", "cpu")
    torch.set_num_threads(threads)
    run_command("data", "view", "demo:boxes", "--out", folder / "data.html")
    run_command("data", "view", spoil(others), "--out", folder / "spoiled.html")
    names = ("classes", "boxes", "masks", "evaluated")
    return {name: folder / name / "report.html" for name in names} | {
        "compared": folder / "compared" / "compare.html",
        "explained": folder / "explained" / "index.html",
        "data": folder / "data.html",
        "spoiled": folder / "spoiled.html",
    }


def find_violations(browser: Any, axe: Axe, page: Path, scheme: str) -> list[str]:
    """Unfold a page and check it; the colours of dark mode concern the contrast alone."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    browser.execute_script(UNFOLD)
    rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
    found = axe.run(browser, options={"resultTypes": ["violations", "passes"], **rules})
    assert found["passes"]
    return [
        f"{page.parent.name}, {scheme}: {each['id']} at {node['html'][:120]}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


def test_pages_have_no_violation_and_load_nothing(browser: Any, pages: dict[str, Path]) -> None:
    axe = Axe()
    browser.set_script_timeout(60)
    broken = break_page(pages["classes"])
    assert "image-alt" in " ".join(find_violations(browser, axe, broken, "light"))
    assert "color-contrast" in " ".join(find_violations(browser, axe, broken, "dark"))
    found = [
        violation
        for page in pages.values()
        for scheme in ("light", "dark")
        for violation in find_violations(browser, axe, page, scheme)
    ]
    assert found == []
    heights = {name: folded_height(browser, page) for name, page in pages.items()}
    assert max(heights.values()) <= HIGHEST, heights
    open_by_keyboard(browser, pages["classes"])
    messages = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    sent = [
        each["params"]["request"]["url"]
        for each in messages
        if each["method"] == "Network.requestWillBeSent"
    ]
    assert len([url for url in sent if url.startswith("file:")]) >= 2 * len(pages)
    assert [url for url in sent if not url.startswith(LOCAL)] == []


def folded_height(browser: Any, page: Path) -> int:
    browser.get(page.as_uri())
    return int(browser.execute_script("return document.documentElement.scrollHeight"))


def open_by_keyboard(browser: Any, page: Path) -> None:
    """The Enter key enlarges an image to the window, and closes it again."""
    from selenium.webdriver.common.keys import Keys

    browser.get(page.as_uri())
    image = browser.find_element("css selector", ".worst .zoom summary")
    small = image.size["width"]
    image.send_keys(Keys.ENTER)
    assert image.size["width"] == browser.execute_script("return document.body.clientWidth")
    image.send_keys(Keys.ENTER)
    assert image.size["width"] == small


def break_page(page: Path) -> Path:
    """A page with two faults, to show that the check finds them."""
    fault = '<p style="color:#777;background:#666">pale</p><img src="data:,">'
    broken = page.with_name("broken.html")
    broken.write_text(page.read_text("utf-8").replace("</main>", f"{fault}</main>"), "utf-8")
    return broken
