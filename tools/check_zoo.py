"""Check models that people fine-tune, each in a process of its own, and train some of them.

    pip install --target zoo.site --no-deps timm torchvision transformers ...   # or into an environment of its own
    PYTHONPATH=.:zoo.site python -m tools.check_zoo --out zoo.jsonl                # --check of every model
    PYTHONPATH=.:zoo.site python -m tools.check_zoo --train --out trained.jsonl    # compile, verify and train some

Without ``--train`` a model is ``ok``, or ``refused`` with every reason; ``unbuilt`` where the library itself does not
make it, because its version is another one or the row is wrong. With ``--train`` it is compiled with the default recipe
and ``--verify numerics`` and trained for some steps, on which its loss must fall; then it is compiled with recipe
``none`` and nothing in 1 bit, and compared with eager PyTorch. A line of JSON for each model goes to ``--out``, whose
models are not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tools.zoo.build import ZooModel, build, declare_operators, rows

SECONDS = 1500
"""A model that takes longer is given up; an LSTM written out step by step takes twenty minutes beside other work."""
RATE = 1e-2
"""The learning rate of the comparison with eager PyTorch, where the row has no other."""
LIBRARIES = ("torch", "timm", "torchvision", "transformers")


class UnbuiltError(Exception):
    """A library does not make a row's model."""


def _built(row: Mapping[str, Any]) -> ZooModel:
    try:
        return build(row)
    except Exception as error:
        raise UnbuiltError(f"{type(error).__name__}: {error}"[:400]) from error


def check_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What ``--check`` says of a row's model: state, reasons, layers in 1 bit and seconds."""
    import fqt_deploy

    module, batch, loss = _built(row)
    begun = time.perf_counter()
    report = fqt_deploy.check(module, loss, example_inputs=batch)
    return {
        "state": "ok" if report.ok else "refused",
        "shape": list(batch[0].shape),
        "seconds": round(time.perf_counter() - begun, 1),
        "one_bit": sum(layer.decision == "1-bit" for layer in report.layers),
        "layers": len(report.layers),
        "errors": [f"{error.code} {error.message} ({error.location})" for error in report.errors],
    }


def train_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What training a row's model gives; its state is ``ok`` or ``wrong``."""
    from tools.zoo.train import against_eager, default_recipe

    rate = row.get("rate", RATE)
    found = {"default": default_recipe(_built(row)), "none": against_eager(_built(row), rate)}
    return {"state": "ok" if all(part["ok"] for part in found.values()) else "wrong", **found}


def in_process(row: Mapping[str, Any], *, train: bool) -> dict[str, Any]:
    """What a child process, which has all imports already, finds of ``row``."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_child, args=(row, train, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(SECONDS) else {"state": "timeout"}
    except EOFError:
        process.join()
        found = {"state": "died", "errors": [f"exit code {process.exitcode}"]}
    process.kill()
    process.join()
    return {"model": row["model"], **{name: row[name] for name in ("part",) if name in row}, **found}


def _child(row: Mapping[str, Any], train: bool, sender: Connection) -> None:
    """The work of a child process: an error of ours is a refusal, any other but the library's own a crash."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from fqt_deploy import FqtError

    try:
        found = train_row(row) if train else check_row(row)
    except FqtError as error:
        found = {"state": "crash" if error.code == "FQT900" else "refused", "errors": [str(error)]}
    except UnbuiltError as error:
        found = {"state": "unbuilt", "errors": [str(error)]}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        where = [line.strip() for line in traceback.format_exc().splitlines() if "File " in line][-4:]
        found = {"state": "crash", "errors": [f"{type(error).__name__}: {error}"[:400], *where]}
    sender.send(found)


def summary(found: list[Mapping[str, Any]]) -> str:
    """A line for each part of the zoo, with the share that is ok of what could be built."""
    lines = []
    for part in sorted({row.get("part", 0) for row in found}):
        states = Counter(row["state"] for row in found if row.get("part", 0) == part)
        lines.append(f"part {part}: {states['ok']} of {states.total() - states['unbuilt']} ok; {dict(states)}")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", help="globs of names such as 'hf/*' (default: all, or all that train)")
    parser.add_argument("--part", type=int, choices=[1, 2], help="models of this part of the list alone")
    parser.add_argument("--train", action="store_true", help="compile, verify and train, too")
    parser.add_argument("--out", type=Path, help="a line of JSON for each model; those in it are left out")
    return parser.parse_args(arguments)


def chosen(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows that the command line asks for."""
    return [
        row
        for row in rows()
        if arguments.part in (None, row.get("part"))
        and (any(fnmatchcase(row["model"], glob) for glob in arguments.models) if arguments.models else True)
        and (bool(arguments.models) or not arguments.train or row.get("train", False))
    ]


def versions() -> dict[str, str]:
    """The versions of the libraries that are here."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Check or train every chosen model; 1 where one crashed, was wrong or took too long."""
    arguments = parse()
    warnings.filterwarnings("ignore")
    declare_operators()
    for name in ("fqt_deploy.compiler", *LIBRARIES):  # once, for all children
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    print(json.dumps(versions()), flush=True)
    out = arguments.out
    found = [json.loads(line) for line in out.read_text().splitlines()] if out is not None and out.exists() else []
    done = {row["model"] for row in found}
    for row in chosen(arguments):
        if row["model"] in done:
            continue
        result = in_process(row, train=arguments.train)
        found.append(result)
        print(result["state"], row["model"], "; ".join(result.get("errors", ()))[:200], flush=True)
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(result) + "\n")
    print(summary(found))
    return int(any(row["state"] not in ("ok", "refused", "unbuilt") for row in found))


if __name__ == "__main__":
    sys.exit(main())
