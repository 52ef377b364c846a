"""The page in a browser: predict, explain, correct, download; keyboard, phone, WCAG, no network.

Needs Chromium and chromedriver. Without them the test is skipped; with REQUIRE_BROWSER=1, as in
.ci/run, it fails.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from axe_core_python.selenium import Axe
from PIL import Image

import headstart
from headstart.cache import Cache
from headstart.data.readers import read_dataset
from headstart.models.inference import Detections, Segmentation
from headstart.reports.page import page_template
from headstart.serving.overlay import draw_prediction
from headstart.serving.predictor import Predictor
from headstart.serving.requests import Limits
from headstart.serving.server import Settings, build_app

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--no-first-run",
)  # fmt: skip
PASTE = """
const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "x", { type: "image/png" }));
document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
const more = new DataTransfer();
more.items.add(new File([bytes], "0.png", { type: "image/png" }));
document.dispatchEvent(new DragEvent("drop", { dataTransfer: more }));
"""


@pytest.fixture(scope="module")
def folder(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    classifier.save(root / "cats")
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    (root / "broken.png").write_bytes(b"<html>")
    return root


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    style = page_template("report.css").render()
    settings = Settings(keys=("one",))
    app = build_app({"cats": folder / "cats"}, settings, Limits(), cache=Cache(), style=style)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Any]:
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
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "saved")})
    for flag in (*FLAGS, f"--user-data-dir={folder / 'browser'}"):
        options.add_argument(flag)
    chromium = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver)
    )
    yield chromium
    chromium.quit()


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found
    return found


def by_css(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def show(browser: Any, *, width: int, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def violations(browser: Any) -> list[str]:
    found = Axe().run(browser, options={"resultTypes": ["violations", "passes"]})
    assert found["passes"]
    return [
        f"{one['id']} at {node['html'][:120]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def test_a_person_predicts_corrects_and_downloads(browser: Any, address: str, folder: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(address)
    state = browser.find_element("id", "state")
    wait_for(lambda: "needs an API key" in state.text)
    browser.find_element("id", "key").send_keys("one", Keys.ENTER)
    wait_for(lambda: browser.find_element("id", "title").text == "Classify images with cats")
    files = [folder / name for name in ("0.png", "1.png", "broken.png")]
    browser.find_element("id", "files").send_keys("\n".join(map(str, files)))
    pasted = base64.b64encode(files[0].read_bytes()).decode()
    browser.execute_script(PASTE, pasted)
    wait_for(lambda: state.text == "5 of 5 images predicted.")
    rows = by_css(browser, ".result")
    model = headstart.load(folder / "cats")
    for row, name in ((rows[0], "0.png"), (rows[1], "1.png")):
        (expected,) = headstart.predict(model, folder / name)
        share = f"{100 * expected.probability:.1f} %"
        assert f"{name}\n{expected.label} ({share})" in row.text
        assert ("The model abstains" in row.text) == expected.abstains
    assert "got an HTML page" in rows[2].text
    assert [row.text.split("\n")[0] for row in rows[3:]] == ["pasted-1.png", "0-2.png"]
    explain_by_keyboard(browser, rows[0])
    correct_and_save(browser, rows, folder)
    for width, scheme in ((390, "light"), (390, "dark"), (1200, "light"), (1200, "dark")):
        show(browser, width=width, scheme=scheme)
        assert violations(browser) == []
        wide = "return document.documentElement.scrollWidth - window.innerWidth"
        assert browser.execute_script(wide) <= 0
    check_requests(browser, address)


def explain_by_keyboard(browser: Any, row: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    button = row.find_elements("css selector", "button")[1]
    assert button.accessible_name == "Show the heat map of 0.png"
    button.send_keys(Keys.ENTER)
    size = "return arguments[0].querySelector('.wide img')?.naturalWidth"
    wait_for(lambda: browser.execute_script(size, row) == 968)


def correct_and_save(browser: Any, rows: list[Any], folder: Path) -> None:
    """Confirm one label, write two; the manifest and the archive are data for `fit`."""
    from selenium.webdriver.common.keys import Keys

    save_table, save_all = (browser.find_element("id", name) for name in ("save-table", "save-all"))
    assert not save_table.is_enabled()
    rows[0].find_elements("css selector", "button")[0].send_keys(Keys.ENTER)
    label = rows[0].find_element("css selector", "h2").text.split(" (")[0]
    for row, text in ((rows[1], 'a "b", c'), (rows[3], "d\u00f6g")):
        row.find_element("css selector", "input").send_keys(text)
    for button, name in ((save_table, "labels.csv"), (save_all, "corrections.zip")):
        button.send_keys(Keys.ENTER)
        wait_for((folder / "saved" / name).exists)
    shutil.copy(folder / "saved" / "labels.csv", folder)
    expected = {"0.png": label, "1.png": 'a "b", c', "pasted-1.png": "d\u00f6g"}
    with zipfile.ZipFile(folder / "saved" / "corrections.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    data = read_dataset(folder / "corrections" / "labels.csv")
    assert {Path(s.name).name: s.target for s in data.samples} == expected
    assert (folder / "corrections" / "1.png").read_bytes() == (folder / "1.png").read_bytes()
    table = (folder / "labels.csv").read_text("utf-8")
    assert table == (folder / "corrections" / "labels.csv").read_bytes().decode().replace("\r", "")


def check_requests(browser: Any, address: str) -> None:
    """The page has asked its own server only; its script is the only one that may run."""
    browser.execute_script(
        "document.body.append(Object.assign(document.createElement('script'), "
        "{ textContent: 'window.injected = 1' }))"
    )
    assert browser.execute_script("return window.injected") is None
    browser.get(f"{address}docs")
    wait_for(lambda: len(by_css(browser, ".endpoint")) == 6)
    assert violations(browser) == []
    messages = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    sent = {
        each["params"]["request"]["url"]
        for each in messages
        if each["method"] == "Network.requestWillBeSent"
    }
    assert f"{address}predict?model=cats&name=0.png" in sent
    own = (address, "blob:", "data:", "chrome:", "about:", "devtools:")
    assert [url for url in sent if not url.startswith(own)] == []


def test_boxes_and_masks_are_drawn(folder: Path, classifier: Any) -> None:
    import io

    predictor = Predictor.of(classifier, cache=Cache(), max_pixels=10**6)
    sample = predictor.sample("0.png", (folder / "0.png").read_bytes())
    boxes = Detections(
        name="0.png",
        size=(80, 60),
        boxes=np.array([[10, 10, 40, 40]], np.float32),
        scores=np.array([0.9], np.float32),
        labels=np.array([1]),
    )
    mask = Segmentation(name="0.png", mask=np.eye(60, 80, dtype=np.uint8))
    drawn = [draw_prediction(sample, one, ("cat", "dog")) for one in (boxes, mask)]
    pixels = [np.asarray(Image.open(io.BytesIO(png))) for png in drawn]
    assert [each.shape for each in pixels] == [(360, 480, 3)] * 2
    assert tuple(pixels[0][150, 60]) == (86, 180, 233)  # the left side of the box, 6 times larger
    with pytest.raises(headstart.UsageError, match="no boxes or mask"):
        draw_prediction(sample, predictor([sample])[0], ("cat", "dog"))
