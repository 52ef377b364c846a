"""Ctrl-C is heard, but not in the middle of something."""

import os
import signal
import threading

import pytest

from headstart.training.interruption import Interruption


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
