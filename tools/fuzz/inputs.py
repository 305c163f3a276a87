"""One damaged input for one reader, determined by its number."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tools.fuzz.mutations import mutate_bytes, mutate_json, mutate_tensors

MEMBERS = ("manifest.json", "step.so", "state.safetensors")


@dataclass(frozen=True)
class Good:
    """The good files that inputs are made from.

    Attributes:
        artifact: a compiled folder.
        checkpoint: a checkpoint of it, with a digest.
        data: an npz file for it.
        weights: its weights, as ``.pt`` and ``.safetensors``; may be empty.
        onnx: the exported training step; None to leave it out.
        log: a tuning log.
    """

    artifact: Path
    checkpoint: Path
    data: Path
    weights: tuple[Path, ...]
    onnx: Path | None
    log: Path | None


def damaged_bundle(good: Good, folder: Path, random_: random.Random) -> None:
    """Make ``folder`` a damaged copy of the artifact; most often its digests say that it is whole."""
    if not folder.exists():
        folder.mkdir()
        shutil.copyfile(good.artifact / "step.so", folder / "step.so")
    contents = {name: (good.artifact / name).read_bytes() for name in ("manifest.json", "state.safetensors")}
    kind = random_.random()
    if kind < 0.6:
        contents["manifest.json"] = mutate_json(contents["manifest.json"], random_)
    elif kind < 0.7:
        contents["manifest.json"] = mutate_bytes(contents["manifest.json"], random_)
    elif kind < 0.9:
        contents["state.safetensors"] = mutate_tensors(contents["state.safetensors"], random_)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    sums = b"".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n".encode() for name in MEMBERS
    )
    (folder / "SHA256SUMS").write_bytes(sums if kind < 0.9 else mutate_bytes(sums, random_))


def damaged_checkpoint(good: Good, path: Path, random_: random.Random) -> None:
    """Write a damaged checkpoint; half of them have the digest of what they hold now."""
    content = mutate_tensors(good.checkpoint.read_bytes(), random_)
    if random_.random() < 0.5:
        content = with_digest(content)
    path.write_bytes(content)


def with_digest(content: bytes) -> bytes:
    """The ``content`` of a checkpoint with its own digest, where it has a place for one."""
    key = b'"fqt_sha256":"'
    place = content.find(key) if key in content else content.find(b'"fqt_sha256": "')
    if place < 0:
        return content
    begin = content.index(b'"', place + len(key) - 1) + 1
    blank = content[:begin] + b"0" * 64 + content[begin + 64 :]
    return blank[:begin] + hashlib.sha256(blank).hexdigest().encode() + blank[begin + 64 :]


def damaged_npz(good: Good, path: Path, random_: random.Random) -> None:
    """Write a damaged data file: the archive, or one array in it."""
    content = good.data.read_bytes()
    if random_.random() < 0.4:
        path.write_bytes(mutate_bytes(content, random_))
        return
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    victim = random_.choice(sorted(arrays))
    head = 128 + random_.choice((0, 0, 0, 400))
    arrays[victim] = mutate_bytes(arrays[victim][:head], random_) + arrays[victim][head:]
    with zipfile.ZipFile(path, "w", random_.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, array in arrays.items():
            archive.writestr(name, array)


def damaged_weights(good: Good, path: Path, random_: random.Random) -> Path:
    """Write damaged weights beside ``path``, with the suffix of their kind."""
    source = random_.choice(good.weights)
    content = source.read_bytes()
    written = path.with_suffix(source.suffix)
    mutate = mutate_tensors if source.suffix == ".safetensors" else mutate_bytes
    written.write_bytes(mutate(content, random_))
    return written


def damaged_file(source: Path, path: Path, random_: random.Random) -> None:
    """Write ``source`` with damaged bytes."""
    path.write_bytes(mutate_bytes(source.read_bytes(), random_))


def damaged_log(good: Good, path: Path, random_: random.Random) -> None:
    """Write a tuning log of which one line is damaged."""
    assert good.log is not None
    lines = good.log.read_bytes().splitlines()[:20]
    number = random_.randrange(len(lines))
    mutate = mutate_json if random_.random() < 0.7 else mutate_bytes
    lines[number] = mutate(lines[number], random_)
    path.write_bytes(b"\n".join(lines))
