#!/usr/bin/env bash
# PyTorch 2.13.0 with safetensors 0.8.0: torch.save writes its own zip format whatever the file is called, while
# torch.load reads a path that ends in ".safetensors" with the safetensors library. So a checkpoint that torch.save wrote
# under such a name is refused when it is read back by its path: SafetensorError ("header too large"), which does not say
# that the format is another. The same bytes are read when the open file is given to torch.load.
# What to do: give such checkpoints another name, or open the file before torch.load.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cat > round_trip.py <<'PY'
import torch

state = {"weight": torch.arange(6.0)}
torch.save(state, "checkpoint.safetensors")


def read(source):
    try:
        return "equal" if torch.equal(torch.load(source, weights_only=True)["weight"], state["weight"]) else "other"
    except Exception as error:
        return type(error).__name__


with open("checkpoint.safetensors", "rb") as file:
    print("by path:", read("checkpoint.safetensors"), "- open file:", read(file))
PY
seen=$(venv/bin/python round_trip.py)
echo "$seen"
test "$seen" = "by path: SafetensorError - open file: equal"
