"""Serve a page that trains the digits example in the browser: ``make digits-page``.

    python -m tools.digits_page --port 8000

Compiles ``examples/digits_cnn.py`` for every ONNX Runtime and puts it with the page of ``js/example``, the package
``fqt-train``, ONNX Runtime's WebAssembly and scikit-learn's digits into one folder, which any web server can serve.
Needs ``npm install`` in ``js/``.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.export_onnx import export_onnx_step
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.settings import options_of
from tools.examples import load_example
from tools.train_digits import load_digits

_PACKAGE = Path(__file__).resolve().parents[1] / "js"
_RUNTIME = _PACKAGE / "node_modules" / "onnxruntime-web" / "dist"
_RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_BATCH = 16
"""Samples in a step: few, so that an epoch has many steps and the page shows progress."""


def write_page(folder: Path) -> None:
    """Fill ``folder`` with the page and all that it loads; a step that is there already stays as it is.

    Raises:
        FqtError: FQT509 if ONNX Runtime for browsers is not installed.
    """
    if not _RUNTIME.is_dir():
        raise FqtError("onnxruntime-web is missing", code="FQT509", hint="make js-env")
    shutil.copytree(_PACKAGE / "example", folder, dirs_exist_ok=True)
    shutil.copytree(_PACKAGE / "src", folder / "fqt-train", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.ts"))
    (folder / "onnxruntime-web").mkdir(exist_ok=True)
    for name in _RUNTIME_FILES:
        shutil.copyfile(_RUNTIME / name, folder / "onnxruntime-web" / name)
    step = folder / "model" / "digits.step.onnx"
    if not step.is_file():
        source = load_example("digits", _BATCH)
        options = options_of(source.options)
        export_onnx_step(source, options, lower_model(source, options), step)
    _write_data(folder / "data")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / "files.json").write_text(json.dumps([name for name in names if name != "files.json"]))


def _write_data(folder: Path) -> None:
    """Write the digits: images float32 and labels int64, first those to train on, and how pixels were scaled."""
    from sklearn import datasets

    digits, pixels = load_digits(), datasets.load_digits().data
    folder.mkdir(exist_ok=True)
    (folder / "images.bin").write_bytes(digits.train_x.astype("<f4").tobytes() + digits.test_x.astype("<f4").tobytes())
    (folder / "labels.bin").write_bytes(digits.train_y.astype("<i8").tobytes() + digits.test_y.astype("<i8").tobytes())
    # Every image is (pixels - mean) / deviation: the darkest and the brightest pixel give both.
    lowest = float(min(digits.train_x.min(), digits.test_x.min()))
    highest = float(max(digits.train_x.max(), digits.test_x.max()))
    deviation = float(pixels.max() - pixels.min()) / (highest - lowest)
    about = {"train": len(digits.train_y), "mean": -lowest * deviation, "deviation": deviation}
    (folder / "about.json").write_text(json.dumps(about))


class _Handler(SimpleHTTPRequestHandler):
    """Files with the types that browsers ask modules and WebAssembly to have, and without a log."""

    extensions_map = {  # noqa: RUF012 - as in the class above
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: a page loads twenty files."""


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of ``folder`` for this machine alone; port 0: any."""
    return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Handler, directory=str(folder)))


def main() -> int:
    """Parse the command line, write the page and serve it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8000, help="of the server (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("build/digits_page"), help="default: %(default)s")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    try:
        write_page(arguments.folder)
    except FqtError as error:
        print(error.render(), file=sys.stderr)
        return 1
    with server(arguments.folder, arguments.port) as serving:
        print(f"http://127.0.0.1:{serving.server_address[1]} (end with Ctrl-C)", flush=True)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
