"""Reading text piece by piece, with the line and the column in every error."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError, SourceLocation

NAME = re.compile(r"[\w*?][\w./*?+-]*")
"""A name that stands without quotation marks: of a layer, an input, a pass, or a glob over names."""
NUMBER = re.compile(r"[-+]?(?:inf\b|nan\b|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)")
STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')

_BLANK = re.compile(r"[ \t]*(?:#[^\n]*)?")


class Scanner:
    """A position in a text; blanks and comments, from ``#`` to the end of a line, are skipped before every piece."""

    def __init__(self, text: str, *, code: str, origin: Path | None = None) -> None:
        """Start at the beginning of ``text``.

        Args:
            text: what is read.
            code: the code of every error.
            origin: the file that the text comes from; errors then show the line itself.
        """
        self.text = text
        self.code = code
        self.origin = origin
        self.position = 0

    def accept(self, pattern: str | re.Pattern[str]) -> str | None:
        """Read ``pattern`` if it comes next: a string is read as it is, a regular expression as what it matches."""
        self.skip_blanks()
        if isinstance(pattern, str):
            found = pattern if self.text.startswith(pattern, self.position) else None
        else:
            match = pattern.match(self.text, self.position)
            found = match[0] if match else None
        if found is not None:
            self.position += len(found)
        return found

    def expect(self, pattern: str | re.Pattern[str], what: str) -> str:
        """Read ``pattern``; an error that names ``what`` was expected if something else comes next."""
        found = self.accept(pattern)
        if found is None:
            raise self.error(f"expected {what}, found {self._next()}")
        return found

    def name(self, what: str) -> str:
        """Read a name, or any text in quotation marks."""
        quoted = self.accept(STRING)
        return json.loads(quoted) if quoted is not None else self.expect(NAME, what)

    def skip_blanks(self) -> None:
        """Go to the next piece in this line, or to its end."""
        blank = _BLANK.match(self.text, self.position)
        assert blank is not None
        self.position = blank.end()

    def at_end_of_line(self) -> bool:
        """Whether nothing but blanks and a comment is left in this line."""
        self.skip_blanks()
        return self.position == len(self.text) or self.text[self.position] == "\n"

    def next_line(self) -> bool:
        """Go to the next line that holds something; whether there is one. What is left of this line is an error."""
        if not self.at_end_of_line():
            raise self.error(f"expected the end of the line, found {self._next()}")
        while self.position < len(self.text) and self.at_end_of_line():
            self.position += 1
        return self.position < len(self.text)

    def error(self, message: str, *, at: int | None = None, hint: str | None = None, code: str = "") -> FqtError:
        """An error about position ``at``, by default where reading has come to; ``code`` if it has one of its own."""
        position = self.position if at is None else at
        line = self.text.count("\n", 0, position) + 1
        column = position - (self.text.rfind("\n", 0, position) + 1) + 1
        error = FqtError(f"line {line}, column {column}: {message}", code=code or self.code, hint=hint)
        if self.origin is not None:
            error.location = SourceLocation(self.origin, line)
        return error

    def unknown(self, what: str, name: str, known: Iterable[str], at: int, *, code: str = "") -> FqtError:
        """An error about a name that nothing has, with the nearest of those that there are."""
        return self.error(f"there is no {what} {name!r}", at=at, hint=nearest(name, known), code=code)

    def _next(self) -> str:
        rest = self.text[self.position :].partition("\n")[0].strip()
        return repr(rest[:20]) if rest else "the end of the line" if self.position < len(self.text) else "the end"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Names that ``name`` may stand for: one of ``known`` that is close to it, else all of them if they are few."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there are: {', '.join(known)}" if 0 < len(known) <= 40 else None


def quoted(name: str) -> str:
    """The text of ``name`` as ``Scanner.name`` reads it: in quotation marks only where it must be."""
    return name if NAME.fullmatch(name) else json.dumps(name)
