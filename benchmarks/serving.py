"""Load on a running server: is an answer lost or mixed up, does memory grow, how fast is it?

    python benchmarks/serving.py --requests 100000             # a tiny network
    python benchmarks/serving.py --requests 20000 --kill 3     # the server is killed, and restarted
    python benchmarks/serving.py --model runs/photos --speed   # beside the same work in process

Every request has its own name, and one of 64 images with known predictions, so that an answer to
another request is found. --speed compares the server with decoding, preprocessing and model in this
process; the clients need processor time beside the server.
"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

IMAGES = 64
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from headstart.cli.app import main; sys.argv[0] = 'headstart'; main()"
)
Accept = Callable[[int, dict[str, Any]], bool]
"""Whether a row is a right prediction of an image, by its number."""


@dataclass
class Load:
    """Result of a load: answers by kind, and seconds of each request."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    reconnected: int = 0
    seconds: list[float] = field(default_factory=list)
    wall: float = 0.0

    def sentence(self) -> str:
        cuts = [1000 * cut for cut in statistics.quantiles(self.seconds, n=100)]
        return (
            f"{self.right} right, {len(self.wrong)} wrong, {self.refused} asked to wait (429), "
            f"{self.reconnected} sent again after a lost connection; "
            f"{self.right / self.wall:.0f} requests/s; "
            f"p50 {cuts[49]:.1f} ms, p95 {cuts[94]:.1f} ms, p99 {cuts[98]:.1f} ms"
        )


def draw_images(number: int = IMAGES, size: tuple[int, int] = (96, 128)) -> list[bytes]:
    """Images of noise, as JPEG and PNG in turn."""
    rng, contents = np.random.default_rng(0), []
    for i in range(number):
        file = io.BytesIO()
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size[::-1]).save(file, ("JPEG", "PNG")[i % 2])
        contents.append(file.getvalue())
    return contents


def start_server(model: Path, *flags: str) -> tuple[subprocess.Popen[str], int]:
    """Start a server; return the process and its port."""
    words = [sys.executable, "-c", START, "serve", str(model), *flags]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"}
    )
    assert process.stdout is not None
    address = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
    assert address is not None
    return process, int(address[1])


def send_load(
    port: int,
    images: list[bytes],
    accepts: Accept,
    *,
    requests: int,
    clients: int = 32,
    retries: bool = False,
    on_request: Callable[[int], None] = lambda number: None,
) -> Load:
    """Send requests from many threads, each with its own connection, and check every answer.

    A request is sent again after the status 429 and, with ``retries``, after a lost connection.
    """
    load, numbers, lock = Load(), itertools.count(), threading.Lock()

    def work() -> None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while (number := next(numbers)) < requests:
            on_request(number)
            started_at = time.perf_counter()
            while True:
                try:
                    status, body = ask(client, number, images[number % len(images)])
                except (OSError, http.client.HTTPException):
                    client.close()
                    if not retries:
                        raise
                    with lock:
                        load.reconnected += 1
                    time.sleep(0.05)
                    continue
                if status != 429:
                    break
                with lock:
                    load.refused += 1
                time.sleep(0.05)
            seconds = time.perf_counter() - started_at
            with lock:
                load.seconds.append(seconds)
                if is_right(status, body, number, accepts, len(images)):
                    load.right += 1
                else:
                    load.wrong.append(f"{number}: {status} {body[:200]!r}")
        client.close()

    began_at = time.perf_counter()
    with ThreadPoolExecutor(clients) as executor:
        for future in [executor.submit(work) for _ in range(clients)]:
            future.result()
    load.wall = time.perf_counter() - began_at
    return load


def ask(client: http.client.HTTPConnection, number: int, content: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/octet-stream"}
    client.request("POST", f"/predict?name={number}", content, headers)
    answer = client.getresponse()
    return answer.status, answer.read()


def is_right(status: int, body: bytes, number: int, accepts: Accept, images: int) -> bool:
    if status != 200:
        return False
    (row,) = json.loads(body)
    return bool(row["name"] == str(number) and accepts(number % images, row))


def predictions_of(model: Path, images: list[bytes]) -> list[dict[str, float]]:
    """Probabilities of every image by `headstart.predict`, one call for each."""
    import headstart

    loaded = headstart.load(model)
    return [headstart.predict(loaded, content, cache=False)[0].probabilities for content in images]


def memory(process: subprocess.Popen[str]) -> float:
    return psutil.Process(process.pid).memory_info().rss / 1e6


def save_tiny(folder: Path) -> Path:
    """A classifier with the smallest network of timm and drawn weights."""
    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve
    from headstart.backbones.frozen import FrozenBackbone
    from headstart.models.heads.linear import LinearHead
    from headstart.models.tasks import ClassificationTask
    from headstart.models.transfer_model import TransferModel

    spec = resolve("timm/test_resnet")
    spec = replace(spec, preprocess=replace(spec.preprocess, resize=32, crop=32))
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    backbone = FrozenBackbone(spec=spec, state=state, origin={"sha256": "0" * 64})
    head = LinearHead.random(backbone.width, 5, seed=0)
    task = ClassificationTask(classes=tuple("abcde"))
    TransferModel(backbone=backbone, head=head, task=task, engine="fp32").save(folder)
    return folder


def compare_speed(
    model: Path, port: int, images: list[bytes], accepts: Accept, rounds: int
) -> None:
    """Requests per second of the server and of the same work in this process, in turns."""
    import headstart
    from headstart.cache import Cache
    from headstart.runtime import cores, use_one_thread
    from headstart.serving.predictor import Predictor

    predictor = Predictor.of(headstart.load(model), cache=Cache(), max_pixels=50_000_000)
    samples = [predictor.sample("", content) for content in images]
    batches = [samples[at : at + 4] for at in range(0, len(samples), 4)] * 4
    number, ratios = 4 * len(images), []
    for turn in range(rounds):
        load = send_load(port, images, accepts, requests=number)
        began_at = time.perf_counter()
        with ThreadPoolExecutor(cores(), initializer=use_one_thread) as executor:
            list(executor.map(predictor, batches))
        local = number / (time.perf_counter() - began_at)
        served = load.right / load.wall
        ratios.append(served / local)
        print(
            f"turn {turn}: server {served:.1f}/s, in process {local:.1f}/s, ratio {ratios[-1]:.2f}"
        )
    print(f"median ratio {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kill", type=int, default=0, help="how often the server is killed")
    parser.add_argument("--speed", type=int, nargs="?", const=5, default=0, help="turns")
    parser.add_argument("--side", type=int, default=0, help="longer side of the images")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = words.model or save_tiny(Path(folder) / "tiny")
        size = (words.side * 3 // 4, words.side) if words.side else (96, 128)
        images = draw_images(size=size)
        expected = predictions_of(model, images)
        process, port = start_server(model, "--port", "0")

        def accepts(image: int, row: dict[str, Any]) -> bool:
            return bool(row["probabilities"] == expected[image])

        if words.speed:
            compare_speed(model, port, images, accepts, words.speed)
        else:
            process = load_and_measure(words, process, port, images, accepts, model)
        process.send_signal(signal.SIGTERM)
        print("exit code after SIGTERM:", process.wait(30))


def load_and_measure(
    words: argparse.Namespace,
    process: subprocess.Popen[str],
    port: int,
    images: list[bytes],
    accepts: Accept,
    model: Path,
) -> subprocess.Popen[str]:
    samples: list[tuple[int, float]] = []
    step = max(words.requests // 10, 1)
    kills = {words.requests * (i + 1) // (words.kill + 1) for i in range(words.kill)}

    def watch(number: int) -> None:
        nonlocal process
        if number in kills:
            process.kill()
            process.communicate()
            process = start_server(model, "--port", str(port))[0]
        elif number % step == 0 and process.poll() is None:
            samples.append((number, memory(process)))

    load = send_load(
        port,
        images,
        accepts,
        requests=words.requests,
        clients=words.clients,
        retries=bool(words.kill),
        on_request=watch,
    )
    samples.append((words.requests, memory(process)))
    print(load.sentence())
    print("MB of memory by requests:", ", ".join(f"{n}: {mb:.0f}" for n, mb in samples))
    for text in load.wrong[:5]:
        print("wrong:", text)
    return process


if __name__ == "__main__":
    main()
