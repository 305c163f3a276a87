"""Text that one thread prints is held back; that of others is not."""

import contextlib
import io
import sys
import threading

import pytest

from fqt_deploy.core.thread_output import held_back


def in_a_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_only_this_threads_text_is_held_back(capsys):
    printed, errors = io.StringIO(), io.StringIO()
    with held_back(stdout=printed, stderr=errors):
        print("mine")
        print("my error", file=sys.stderr, flush=True)
        in_a_thread(lambda: print("theirs"))
        in_a_thread(lambda: print("their error", file=sys.stderr, flush=True))
    assert (printed.getvalue(), errors.getvalue()) == ("mine\n", "my error\n")
    assert capsys.readouterr() == ("theirs\n", "their error\n")


def test_a_stream_that_is_not_given_is_left_alone(capsys):
    with held_back(stderr=io.StringIO()):
        print("mine")
    assert capsys.readouterr().out == "mine\n"


def test_streams_come_back_after_an_error():
    before = sys.stdout, sys.stderr
    with pytest.raises(ValueError, match="x"), held_back(stdout=io.StringIO(), stderr=io.StringIO()):
        raise ValueError("x")
    assert (sys.stdout, sys.stderr) == before


def test_a_program_without_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    printed = io.StringIO()
    with held_back(stdout=printed):
        print("mine")
        in_a_thread(lambda: print("theirs", flush=True))
    assert printed.getvalue() == "mine\n"
    with contextlib.redirect_stdout(None):
        assert sys.stdout is None
