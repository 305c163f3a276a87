"""Errors that a person can act on: each names a code, and where known the line of the model that it is about."""

from __future__ import annotations

import functools
import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx

CODES: dict[str, str] = {
    # capture
    "FQT101": "the model file does not follow the contract of a model file",
    "FQT102": "the weights cannot be loaded into the model",
    "FQT103": "the example inputs do not fit the model",
    "FQT104": "the model cannot be traced",
    "FQT105": "the model's output or loss has the wrong type",
    "FQT106": "no parameter receives a gradient",
    "FQT107": "a prediction depends on more than its own sample and the state",
    # options and legality
    "FQT201": "the model uses operators that have no lowering",
    "FQT202": "an option has a value that it cannot have",
    "FQT203": "an operator has no lowering for these parameters",
    "FQT204": "a glob matches no layer or parameter",
    "FQT205": "the model does not fit the chosen recipe",
    "FQT206": "there is no pass of this name",
    "FQT207": "a tuning log cannot be read",
    "FQT208": "the text of a graph cannot be read",
    "FQT209": "a list of passes cannot be read",
    "FQT210": "an optimizer of PyTorch cannot be compiled or followed",
    "FQT211": "a plan cannot be read",
    "FQT212": "the statistics of batch normalization cannot be synchronized",
    # code generation
    "FQT301": "the generated program does not compile",
    "FQT302": "the C or C++ compiler is missing, or fails",
    "FQT303": "the compiler is not installed",
    # targets and devices
    "FQT401": "there is no target of this name",
    "FQT402": "the processor is unknown, or this machine cannot run code for it",
    "FQT403": "the device, its driver or its emulator is missing",
    "FQT404": "the compiler for the device is missing or does not work",
    "FQT405": "the device or its driver cannot run the artifact",
    "FQT406": "the device's memory is too small",
    # artifacts and the runtime
    "FQT501": "the folder is not an artifact",
    "FQT502": "a file is damaged or was changed",
    "FQT503": "the file was written by an incompatible version",
    "FQT504": "the checkpoint belongs to another model or other options",
    "FQT505": "an array has the wrong shape or type",
    "FQT506": "the data contain NaN or infinity",
    "FQT507": "a label is out of range",
    "FQT508": "the output cannot be written, or would overwrite something else",
    "FQT509": "the runtime library is missing",
    "FQT510": "the data cannot be used",
    "FQT511": "the loss is not finite",
    "FQT512": "the session cannot be used in this process or thread",
    "FQT513": "a session cannot be copied, or has not what is asked of it",
    "FQT601": "the step was not compiled for several processes",
    "FQT602": "the processes do not train the same",
    "FQT603": "another process of the training has ended",
    "FQT604": "the processes cannot find each other",
    # bugs in the compiler
    "FQT900": "a compiler pass broke an invariant; please report it",
}
"""Every code with the kind of mistake it stands for."""

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_USER_ROOT: ContextVar[Path | None] = ContextVar("user_root", default=None)


@contextmanager
def user_root(folder: Path) -> Iterator[None]:
    """Within this context, source locations are lines of files inside ``folder``, the user's own code."""
    token = _USER_ROOT.set(folder.resolve())
    try:
        yield
    finally:
        _USER_ROOT.reset(token)


@dataclass(frozen=True)
class SourceLocation:
    """One line of the user's code.

    Attributes:
        path: the file.
        line: line number, from 1.
        root: folder that the shown path is relative to, or None to show it whole.
    """

    path: Path
    line: int
    root: Path | None = None

    @classmethod
    def of(cls, node: fx.Node) -> SourceLocation | None:
        """The innermost frame of ``node`` in the user's folder; outside ``user_root``, in no installed package."""
        return cls.of_text(str(node.meta.get("stack_trace") or ""))

    @classmethod
    def of_text(cls, trace: str) -> SourceLocation | None:
        """The innermost frame of the user's code in the text of a stack trace."""
        return cls._innermost([(Path(file), int(line)) for file, line in _FRAME.findall(trace)])

    @classmethod
    def of_error(cls, error: BaseException) -> SourceLocation | None:
        """The innermost line of the user's code that ``error`` passed through."""
        frames = traceback.walk_tb(error.__traceback__)
        return cls._innermost([(Path(frame.f_code.co_filename), line) for frame, line in frames])

    @classmethod
    def of_frame(cls, frame: FrameType) -> SourceLocation | None:
        """The innermost line of the user's code among ``frame`` and its callers."""
        frames = [(Path(caller.f_code.co_filename), line) for caller, line in traceback.walk_stack(frame)]
        return cls._innermost(frames[::-1])

    @classmethod
    def _innermost(cls, frames: list[tuple[Path, int]]) -> SourceLocation | None:
        root = _USER_ROOT.get()
        for path, line in reversed(frames):
            if root is not None and path.resolve().is_relative_to(root) and not _is_installed(path):
                return cls(path.resolve(), line, root)
            if root is None and not _is_installed(path):
                return cls(path, line)
        return None

    @property
    def text(self) -> str:
        """The source line itself, or an empty string if the file cannot be read."""
        return linecache.getline(str(self.path), self.line).rstrip()

    @property
    def portable(self) -> str:
        """The line without folders of this machine, for files that go to others."""
        folder = self.root if self.root is not None else Path.cwd()
        shown = self.path.relative_to(folder) if self.path.is_relative_to(folder) else self.path.name
        return f"{shown}:{self.line}"

    def __str__(self) -> str:
        shown = self.path.relative_to(self.root) if self.root is not None else self.path
        return f"{shown}:{self.line}"


class FqtError(Exception):
    """A mistake that the user can mend.

    Attributes:
        message: what is wrong, with the numbers.
        code: a key of ``CODES``.
        node: the graph node it is about.
        hint: what to do.
        location: the line of the user's code that ``node`` comes from.
    """

    def __init__(self, message: str, *, code: str, node: fx.Node | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.node = node
        self.hint = hint
        self.location = SourceLocation.of(node) if node is not None else None
        self._added: list[str] = []

    def render(self) -> str:
        """The message as the command line shows it, with the source line, the node and the hint."""
        return "\n".join([f"error[{self.code}]: {self.message}", *self._below()])

    def _below(self) -> list[str]:
        """What is shown below the message: the source line, the node and the hint."""
        lines = []
        gutter = " " * 3
        if self.location is not None:
            lines.append(f"  --> {self.location}")
            if self.location.text:
                number = f" {self.location.line} "
                gutter = " " * len(number)
                lines.append(f"{number}| {self.location.text}")
        lines += [f"{gutter}= note: {note}" for note in self._notes()]
        if self.hint is not None:
            lines.append(f"{gutter}= help: {self.hint}")
        return lines

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]  # location and hint may be set after the error was made
        """What a traceback shows below the message: the same as the command line, so that a script tells what to do."""
        return [*self._below(), *self._added]

    def add_note(self, note: str) -> None:
        """Keep a note for the end of a traceback."""
        self._added.append(note)

    def _notes(self) -> list[str]:
        if self.node is None:
            return []
        phase, layer = self.node.meta.get("phase"), self.node.meta.get("layer")
        note = f"node %{self.node.name}"
        return [note + (f" ({phase})" if phase else "") + (f", module {layer}" if layer else "")]

    @property
    def parts(self) -> tuple[FqtError, ...]:
        """The single errors that this one is made of."""
        return (self,)

    @property
    def module(self) -> str:
        """Path of the module that ``node`` belongs to; empty for none."""
        return str(self.node.meta.get("layer") or "") if self.node is not None else ""

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class CombinedError(FqtError):
    """Several mistakes told at once; code, node and location are those of the first."""

    def __init__(self, parts: Sequence[FqtError]) -> None:
        first = parts[0]
        told = "\n".join(f"  {part.message}" + (f" at {part.location}" if part.location else "") for part in parts)
        super().__init__(f"{len(parts)} things have to change:\n{told}", code=first.code, hint=first.hint)
        self.node, self.location = first.node, first.location
        self._parts = tuple(parts)

    @property
    def parts(self) -> tuple[FqtError, ...]:
        """The single errors, in the order in which they were found."""
        return self._parts

    def _below(self) -> list[str]:
        """What to do, each once; the message has the lines."""
        return [f"    = help: {hint}" for hint in dict.fromkeys(part.hint for part in self._parts) if hint]

    def render(self) -> str:
        """All of them, one after the other, with their number at the end."""
        return "\n".join([*(part.render() for part in self._parts), f"{len(self._parts)} errors"])


def together(errors: Sequence[FqtError]) -> FqtError:
    """The error that joins all ``errors``, and says once what several of them say of one line and module."""
    told: dict[tuple[str, ...], FqtError] = {}
    for part in (part for error in errors for part in error.parts):
        told.setdefault((part.code, part.message, part.module, str(part.location)), part)
    first, *others = told.values()
    return CombinedError([first, *others]) if others else first


class InvariantError(FqtError):
    """A pass left a malformed graph: a bug in that pass, not in the model."""

    def __init__(self, message: str, *, node: fx.Node | None = None, hint: str | None = None) -> None:
        super().__init__(message, code="FQT900", node=node, hint=hint)

    def _notes(self) -> list[str]:
        return [*super()._notes(), *self._added]

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]  # as above
        """As for others; what was added stands among the notes of the node."""
        return self._below()


@functools.cache
def _is_installed(path: Path) -> bool:
    """Whether ``path`` belongs to an installed package, the standard library or this compiler."""
    library = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    installed = ("site-packages" in path.parts) or any(path.is_relative_to(folder) for folder in library)
    return installed or path.is_relative_to(Path(__file__).parents[1]) or str(path).startswith("<")
