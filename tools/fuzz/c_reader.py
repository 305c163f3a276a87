"""The C interface on damaged bundles and checkpoints, built with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import random
import select
import subprocess
from collections import Counter
from pathlib import Path

from fqt_deploy.packaging.build_c_api import SOURCES, link
from fqt_deploy.packaging.runtime_libraries import runtime_libraries
from fqt_deploy.targets.toolchain import native_toolchain
from tools.fuzz import inputs
from tools.fuzz.python_readers import LIMIT, Finding

KINDS = ("bundle", "checkpoint")
_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1", "-O0", "-Wno-error")
_OPTIONS = {
    "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=0:handle_segv=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "FQT_NUM_THREADS": "1",
}


def build_driver(folder: Path) -> Path:
    """Build ``driver.c`` with the sources of the C interface; FQT302 if there is no compiler or it fails."""
    libraries = runtime_libraries(native_toolchain())
    paths = {path.parent for path in (libraries.runtime, libraries.ffi)}
    sources = [*sorted((SOURCES / "src").glob("*.cc")), Path(__file__).with_name("driver.c")]
    program = folder / "driver"
    options = (*_SANITIZERS, *(f"-Wl,-rpath,{path}" for path in paths), "-pthread", "-fpermissive")
    link(sources, program, native_toolchain(), libraries, options)
    return program


class Driver:
    """The running program; a new one is started after each that died."""

    def __init__(self, program: Path, good: inputs.Good, log: Path) -> None:
        self._command = [str(program), str(good.artifact)]
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def ask(self, line: str) -> str:
        """The answer to ``line``, or what the program wrote as it died or was ended for taking too long."""
        if self._process is None:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                    env={**os.environ, **_OPTIONS},
                )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], LIMIT)
        answer = self._process.stdout.readline().strip() if ready else ""
        if answer:
            return answer
        self.close()
        return ("it died\n" if ready else "it hangs\n") + self._log.read_text()

    def close(self) -> str:
        """End the program; what it wrote to standard error."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        return self._log.read_text() if self._log.exists() else ""


def fuzz_c(program: Path, good: inputs.Good, workspace: Path, numbers: range) -> tuple[Counter[str], list[Finding]]:
    """Give the C interface the inputs with these ``numbers``; see ``python_readers.fuzz``."""
    driver = Driver(program, good, workspace / "stderr")
    outcomes: Counter[str] = Counter()
    findings = []
    for number in numbers:
        kind = KINDS[number % len(KINDS)]
        random_ = random.Random(f"c {kind} {number}")
        if kind == "bundle":
            inputs.damaged_bundle(good, workspace / "bundle", random_)
        else:
            inputs.damaged_checkpoint(good, workspace / "checkpoint", random_)
        answer = driver.ask(f"{kind} {workspace / kind}")
        if answer.isdecimal() and answer != "900":
            outcomes[f"c {kind} {'taken' if answer == '0' else 'FQT' + answer}"] += 1
        else:
            findings.append(Finding(f"c {kind}", number, answer))
    if "ERROR: AddressSanitizer" in (said := driver.close()) or "runtime error" in said:
        findings.append(Finding("c", numbers.stop, said))
    return outcomes, findings
