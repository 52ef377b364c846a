"""Metrics as text: counters by path and status, the queue, the process."""

from __future__ import annotations

from headstart.serving.metrics import Metrics


def test_two_servers_do_not_share_counters() -> None:
    first, second = Metrics(), Metrics()
    first.count_images("cats", 3)
    first.count_batch(2)
    first.count_reload("cats", False)
    first.watch_queue(lambda: 7)
    text = first.text()
    for line in (
        'headstart_images_total{model="cats"} 3.0',
        'headstart_batch_images_bucket{le="2.0"} 1.0',
        'headstart_model_reloads_total{model="cats",result="failed"} 1.0',
        "headstart_waiting_images 7.0",
        "process_resident_memory_bytes",
    ):
        assert line in text
    assert "cats" not in second.text()
