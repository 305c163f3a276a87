"""Train an artifact through the C interface with ctypes: the standard library alone, no NumPy.

    make c-api
    library=build/c-api-x86_64/lib/libfqt_runtime.so
    python examples/c/train.py $library digits_cnn.fqt digits.raw 5 checkpoint.safetensors

``digits.raw`` is the data file of train.c: samples one after the other, each the bytes of x, then those of y. Prints
the loss of every step. Training goes on from the checkpoint if it is there, and writes it at the end.
"""

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int64, c_size_t, c_void_p
from pathlib import Path


class Tensor(ctypes.Structure):
    """What an array is: ``fqt_tensor`` of the header."""

    _fields_ = (
        ("name", c_char_p),
        ("dtype", c_char_p),
        ("shape", POINTER(c_int64)),
        ("ndim", c_size_t),
        ("bytes", c_size_t),
    )


SIGNATURES = {
    "fqt_last_error": (c_char_p,),
    "fqt_load": (ctypes.c_int, c_char_p, POINTER(c_void_p)),
    "fqt_free": (None, c_void_p),
    "fqt_x": (POINTER(Tensor), c_void_p),
    "fqt_y": (POINTER(Tensor), c_void_p),
    "fqt_step": (ctypes.c_int, c_void_p, c_char_p, c_size_t, c_char_p, c_size_t, POINTER(c_float)),
    "fqt_save_checkpoint": (ctypes.c_int, c_void_p, c_char_p),
    "fqt_load_checkpoint": (ctypes.c_int, c_void_p, c_char_p),
}
"""The result and the arguments of each function. Without them, ctypes passes pointers as 32-bit integers."""


def opened(path: str) -> ctypes.CDLL:
    """The library, with the types of its functions."""
    library = ctypes.CDLL(path)
    for name, (result, *arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def main() -> None:
    """Train as the command line says."""
    path, artifact, data, epochs, *checkpoint = sys.argv[1:]
    library = opened(path)

    def check(code: int) -> None:
        if code != 0:
            sys.exit(library.fqt_last_error().decode())

    session = c_void_p()
    check(library.fqt_load(artifact.encode(), byref(session)))
    if checkpoint and Path(checkpoint[0]).is_file():
        check(library.fqt_load_checkpoint(session, checkpoint[0].encode()))
    x, y = library.fqt_x(session).contents, library.fqt_y(session).contents
    batch = x.shape[0]
    x_size, y_size = x.bytes // batch, y.bytes // batch
    rows = Path(data).read_bytes()
    loss, step = c_float(), 0
    for _ in range(int(epochs)):
        for first in range(0, len(rows) // (x_size + y_size) - batch + 1, batch):
            starts = [(first + i) * (x_size + y_size) for i in range(batch)]
            images = b"".join(rows[start : start + x_size] for start in starts)
            labels = b"".join(rows[start + x_size : start + x_size + y_size] for start in starts)
            check(library.fqt_step(session, images, len(images), labels, len(labels), byref(loss)))
            step += 1
            print(f"step {step} loss {loss.value:.9g}")
    if checkpoint:
        check(library.fqt_save_checkpoint(session, checkpoint[0].encode()))
    library.fqt_free(session)


if __name__ == "__main__":
    main()
