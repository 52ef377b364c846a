"""Ctrl-C is heard, but not in the middle of something."""

import os
import signal
import threading

import pytest

from headstart.training.interruption import Interruption, StopRequest, StopRequested


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_what_is_held_is_finished_first():
    done = []
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:  # noqa: PT012
        with interruption.delayed():
            ctrl_c()
            done.append("within")
        done.append("behind")
    assert done == ["within"]
    assert interruption.is_consistent


def test_between_it_is_obeyed_at_once_and_afterwards_as_ever():
    with pytest.raises(KeyboardInterrupt), Interruption():
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def ctrl_c_twice():
    ctrl_c()
    ctrl_c()
    pytest.fail("the second one was held back too")


def test_a_second_one_does_not_wait():
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption, interruption.delayed():
        ctrl_c_twice()
    assert not interruption.is_consistent


def test_an_error_leaves_something_half_done():
    with Interruption() as interruption:
        with pytest.raises(KeyError), interruption.delayed():
            raise KeyError
        assert not interruption.is_consistent


def test_who_listens_already_goes_on_to():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    try:
        with Interruption():
            ctrl_c()
        assert heard == [True]
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_may_train():
    done = []

    def work():
        with Interruption() as interruption, interruption.delayed():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_before_a_model_exists_ctrl_c_ends_the_run_and_says_so():
    events = []
    with pytest.raises(KeyboardInterrupt), StopRequest(events.append):
        ctrl_c()
    assert [event.text for event in events] == [
        "Stopping: there is no model yet. Results in the cache are kept."
    ]


def test_with_a_model_the_first_ctrl_c_is_acknowledged_and_the_second_is_obeyed():
    events = []
    with pytest.raises(KeyboardInterrupt), StopRequest(events.append) as stop:  # noqa: PT012
        stop.keep_model()
        ctrl_c()
        assert stop.is_requested
        assert not stop.is_forced
        ctrl_c()
    assert stop.is_forced
    assert events == [StopRequested()]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_request_within_another_one_shares_its_state():
    outer_events, inner_events = [], []
    with StopRequest(outer_events.append) as outer:
        with StopRequest(inner_events.append) as inner:
            inner.keep_model()
            ctrl_c()
            assert inner.is_requested
        assert outer.is_requested
    assert outer_events == [StopRequested()]
    assert inner_events == []


def test_work_without_a_partial_result_always_ends():
    events = []
    ends = StopRequest(events.append, always_ends="Bye.")
    with pytest.raises(KeyboardInterrupt), ends as stop:  # noqa: PT012
        with StopRequest(events.append) as inner:
            inner.keep_model()
        stop.keep_model()
        ctrl_c()
    assert [event.text for event in events] == ["Bye."]


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest(lambda _: None) as stop, Interruption():
            stop.keep_model()
            ctrl_c()
        assert not stop.is_requested
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_callback_stops_from_the_first_model_on() -> None:
    events: list[StopRequested] = []
    with StopRequest(events.append) as outer, StopRequest(print) as inner:
        outer.request()
        assert not inner.is_requested
        inner.keep_model()
        outer.request()
        assert inner.is_requested
        assert inner.is_by_callback
        assert inner.source == "a callback"
        assert not inner.is_forced
    assert [event.sentence() for event in events] == ["Stopping after this step, for a callback."]
