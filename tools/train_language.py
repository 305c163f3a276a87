"""Train the examples on transformers' models, BERT and GPT-2, in 1 bit and with PyTorch's arithmetic beside it.

Example: ``PYTHONPATH=.:transformers.site python -m tools.train_language bert_sst2``, with transformers in that folder.
For BERT it prints the share of held-out sentences that are classified rightly, for GPT-2 the loss of held-out text, in
nats a character; and the seconds of compilation and of a step. Kernels that were compiled before are taken again.
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fqt_deploy
from fqt_deploy.capture.load_model import load_model
from tools.examples import compile_example

Batch = dict[str, NDArray[Any]]
FOLDER = Path(__file__).resolve().parents[1] / "examples"
SETTINGS: dict[str, dict[str, Any]] = {
    "1 bit": {},
    "1 bit, recipe none": {"recipe": "none"},
    "full precision": {"recipe": "none", "exclude": ("*",)},
}
"""The rows of the report, with what each compiles."""


class Example(NamedTuple):
    """How one example is trained.

    Attributes:
        data: training and held-out data by the names in the example file.
        epochs: how often the data are gone through.
        measure: what the held-out result is called, and what it is of logits and labels.
    """

    data: Callable[[Mapping[str, Any]], tuple[Batch, Batch]]
    epochs: int
    measure: tuple[str, Callable[[NDArray[Any], NDArray[Any]], float]]


def accuracy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """The share of samples whose largest logit, [N, classes], is their label's, [N]."""
    return float((logits.argmax(1) == labels).mean())


def next_token_loss(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean cross-entropy of each token of labels [N, length] after the first, by the logits [N, length, tokens]."""
    scores = logits[:, :-1].astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    chosen = np.take_along_axis(scores, labels[:, 1:, None], -1)[..., 0]
    return float((np.log(np.exp(scores).sum(-1)) - chosen).mean())


def _arrays(tensors: Mapping[str, Any]) -> Batch:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


EXAMPLES: dict[str, Example] = {
    "bert_sst2": Example(
        lambda file: (_arrays(file["sentences"](8192, 1)), _arrays(file["sentences"](1024, 2))),
        12,
        ("accuracy", accuracy),
    ),
    "distilgpt2_lm": Example(
        lambda file: (_arrays(file["sequences"]()), _arrays(file["sequences"](True))), 5, ("loss", next_token_loss)
    ),
}


def train(
    artifact: Path, example: Example, data: Batch, held_out: Batch, epochs: int, rate: float | None
) -> tuple[float, float]:
    """The held-out result after ``epochs``, with a learning rate that falls to zero, and the seconds of a step.

    Args:
        artifact: the compiled step.
        example: how it is trained.
        data: to train on.
        held_out: to measure on.
        epochs: how often the data are gone through.
        rate: the first learning rate; None: the artifact's.
    """
    session = fqt_deploy.load(artifact)
    batch, samples = session.manifest.batch, len(data["labels"])
    per_epoch = samples // batch
    first = session.lr if rate is None else rate
    assert isinstance(first, float)
    begun = time.perf_counter()
    for step in range(epochs * per_epoch):
        if step % per_epoch == 0:
            order = np.random.default_rng(step).permutation(samples)
        rows = order[step % per_epoch * batch :][:batch]
        session.lr = first * (1 - step / (epochs * per_epoch))
        session.step({name: array[rows] for name, array in data.items()}, check=True)
    seconds = (time.perf_counter() - begun) / (epochs * per_epoch)
    inputs = {name: array for name, array in held_out.items() if name != "labels"}
    return example.measure[1](session.predict(inputs), held_out["labels"]), seconds


def main() -> None:
    """Compile and train each row of an example, and print what it comes to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("example", choices=sorted(EXAMPLES))
    parser.add_argument("--rows", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--epochs", type=int, help="default: %s" % {n: e.epochs for n, e in EXAMPLES.items()})
    parser.add_argument("--lr", type=float, help="begin with this learning rate (default: the example's)")
    arguments = parser.parse_args()
    example, path = EXAMPLES[arguments.example], FOLDER / f"{arguments.example}.py"
    data, held_out = example.data(runpy.run_path(str(path)))
    epochs = arguments.epochs or example.epochs
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.rows:
            begun = time.perf_counter()
            result = compile_example(load_model(path), SETTINGS[name], Path(folder) / name.replace(" ", "_"))
            compiled = time.perf_counter() - begun
            layers = result.manifest.layers
            found, seconds = train(result.output, example, data, held_out, epochs, arguments.lr)
            one_bit = sum(layer.decision == "1-bit" for layer in layers)
            print(
                f"{name}: {example.measure[0]} {found:.4f} after {epochs} epochs; {one_bit} of {len(layers)} layers in "
                f"1 bit, compiled in {compiled:.1f} s, {1e3 * seconds:.1f} ms a step",
                flush=True,
            )


if __name__ == "__main__":
    main()
