"""One thread at a time is in a function that was wrapped; a forked process does not wait for a thread that it lacks."""

import os
import threading
import time

import pytest

from fqt_deploy.core.one_compilation import is_compiling, one_at_a_time


def test_threads_wait_for_each_other_and_one_may_enter_twice():
    inside, most = [], []

    @one_at_a_time
    def inner():
        inside.append(0)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()

    outer = one_at_a_time(lambda: inner())
    threads = [threading.Thread(target=outer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_an_error_opens_it_again():
    @one_at_a_time
    def fails():
        raise ValueError("x")

    def meets_it():
        with pytest.raises(ValueError, match="x"):
            fails()

    for _ in range(2):
        thread = threading.Thread(target=meets_it)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_beside_a_compiling_thread_compiles():
    entered, done = threading.Event(), threading.Event()

    @one_at_a_time
    def waits():
        entered.set()
        done.wait()

    thread = threading.Thread(target=waits)
    thread.start()
    entered.wait()
    child = os.fork()
    if not child:
        one_at_a_time(lambda: None)()
        os._exit(7)
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    done.set()
    thread.join()
    assert ended
    assert os.waitstatus_to_exitcode(status) == 7


def test_a_thread_knows_whether_it_compiles():
    other = []

    @one_at_a_time
    def compiles():
        thread = threading.Thread(target=lambda: other.append(is_compiling()))
        thread.start()
        thread.join()
        return is_compiling()

    assert (is_compiling(), compiles(), other, is_compiling()) == (False, True, [False], False)
