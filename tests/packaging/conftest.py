import subprocess
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parents[2] / "examples" / "c" / "train.c"


def compile_example(compiler: str, c_api: Path, output: Path) -> Path:
    """Compile examples/c/train.c as a person would; it finds the libraries where they were built."""
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-I", str(c_api / "include")]
    library = ["-L", str(c_api / "lib"), "-lfqt_runtime", f"-Wl,-rpath,{c_api / 'lib'}"]
    subprocess.run([compiler, *flags, str(EXAMPLE), *library, "-o", str(output)], check=True)
    return output


def write_rows(path: Path, x, y) -> None:
    """The data file of examples/c/train.c."""
    rows = np.empty(len(x), np.dtype([("x", x.dtype, x.shape[1:]), ("y", y.dtype, y.shape[1:])]))
    rows["x"], rows["y"] = x, y
    rows.tofile(path)
