"""``python -m fqt_deploy.train``: the command ``fqt-train`` as torchrun starts it, once for each process."""

from __future__ import annotations

from fqt_deploy.cli_train import main

if __name__ == "__main__":
    main(prog_name="python -m fqt_deploy.train")
