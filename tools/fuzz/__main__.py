"""Fuzz everything that reads a file: ``python -m tools.fuzz --inputs 10000``.

A small model is compiled once; bundles, checkpoints, data files, weights, ONNX files and tuning logs are damaged by the
thousand and read in Python, and bundles and checkpoints in C with sanitizers. Each must be taken or refused with a
code. A finding names the kind and the number of the input, which determine it.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tools.fuzz.c_reader import build_driver, fuzz_c
from tools.fuzz.good_files import make_good_files
from tools.fuzz.python_readers import Finding, fuzz

KINDS = ["bundle", "checkpoint", "npz", "weights", "onnx", "log"]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="in each language [default: 1000]")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what to read in Python")
    parser.add_argument("--only", choices=["python", "c"], help="one language alone")
    arguments = parser.parse_args()
    faulthandler.enable()
    numbers = range(arguments.first, arguments.first + arguments.inputs)
    outcomes: Counter[str] = Counter()
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        workspace = Path(folder)
        good = make_good_files(workspace / "good", onnx="onnx" in arguments.kinds)
        if arguments.only != "c":
            found = fuzz(good, workspace, arguments.kinds, numbers)
            outcomes, findings = outcomes + found[0], findings + found[1]
        if arguments.only != "python":
            (workspace / "c").mkdir()
            found = fuzz_c(build_driver(workspace), good, workspace / "c", numbers)
            outcomes, findings = outcomes + found[0], findings + found[1]
    for name, count in sorted(outcomes.items()):
        print(f"{count:7} {name}")
    for finding in findings:
        print(f"--- {finding.kind}, input {finding.number}\n{finding.said}")
    print(f"{sum(outcomes.values()) + len(findings)} inputs, {len(findings)} findings")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
