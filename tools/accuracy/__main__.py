r"""Commands of the accuracy study; results are lines of JSON, which ``report`` turns into tables and plots.

Example, from pretraining to the table::

    python -m tools.accuracy pretrain --data cifar10.npz --network vgg6 --steps 1500 --results study.jsonl
    python -m tools.accuracy transfer --data cifar10.npz --network vgg6 --rows none psq-1 once-4 --lrs 3e-4 1e-3 \
        --seeds 100 --steps 468 --results study.jsonl
    python -m tools.accuracy transfer --data cifar10.npz --network vgg6 --rows none psq-1 once-4 --lrs tuned \
        --seeds 0 1 2 --steps 468 --results study.jsonl
    python -m tools.accuracy report docs/accuracy.md

A command that was stopped goes on where it was when it is called again; what is done is not done again. Several
processes may work on one file of results: each job is done by one of them.
"""

from __future__ import annotations

import argparse
import sys

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy import race_command, report_command, theory_command, train_command

COMMANDS = (train_command, theory_command, race_command, report_command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    chosen = parser.parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
    except FqtError as error:
        print(error.render(), file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
