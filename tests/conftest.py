import gc
import importlib.util
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from fqt_deploy.core.user_cache import user_cache

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # one core each, or kernels wait for each other's threads
    for variable in ("FQT_NUM_THREADS", "TVM_NUM_THREADS"):
        os.environ.setdefault(variable, str(max(1, len(os.sched_getaffinity(0)) // int(workers))))
os.environ["FQT_BUILD_CACHE"] = "0"
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell; processes inherit that


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden files, and the results below the cases of tests/passes/golden, instead of comparing",
    )


def pytest_configure(config):
    """All workers of a run share a cache of kernels, empty at first; the rest of the user's cache is there, too.

    What starts the workers runs no tests: it does without the fixtures that import PyTorch and TVM.
    """
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.compiled_steps")
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.TemporaryDirectory(prefix="fqt-tests-")
    config.add_cleanup(folder.cleanup)
    own = Path(folder.name) / "fqt-deploy"
    own.mkdir()
    for entry in user_cache().iterdir() if user_cache().is_dir() else ():
        if entry.name not in ("kernels", "builds"):
            (own / entry.name).symlink_to(entry)
    os.environ["XDG_CACHE_HOME"] = folder.name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Of a sweep, what its mark ``quick`` chooses is in the default run; the other cases are thorough.

    ``quick(n)`` keeps the first ``n``, ``quick(n, per="spec")`` as many of every value of this parameter (or of what a
    function makes of all of them), ``quick(only=ids)`` those with these ids. No file may lose all of its tests but
    one that says so itself: ``pytestmark = pytest.mark.thorough``.
    """
    kept: Counter[object] = Counter()
    lost = set()
    for item in items:
        if rule := item.get_closest_marker("quick"):
            if not _is_quick(item, kept, *rule.args, **rule.kwargs):
                item.add_marker("thorough")
            lost |= {f"{item.nodeid.partition('[')[0]}[{name}]" for name in rule.kwargs.get("only", ())}
    if not any("::" in argument for argument in config.args):
        tests = [item for item in items if item.get_closest_marker("slow") is None]
        lost |= {str(item.path) for item in tests}
        for item in tests:
            of_file = any(mark.name == "thorough" for mark in item.parent.own_markers)
            if of_file or item.get_closest_marker("thorough") is None:
                lost -= {str(item.path), item.nodeid}
        if lost:
            raise pytest.UsageError(f"nothing of this is in the default run: {', '.join(sorted(lost))}")
    items.sort(key=lambda item: _place(item.nodeid))


def _is_quick(item, kept, n=1, per=None, only=None):
    """Whether a case of a sweep belongs to the default run; ``kept`` counts those of each kind that do."""
    values = item.callspec.params
    if only is not None:
        return item.callspec.id in only
    kind = (item.path, item.originalname, values[per] if isinstance(per, str) else per(values) if per else None)
    kept[kind] += 1
    return kept[kind] <= n


def _lump(nodeid):
    """The folder of a test."""
    return nodeid.partition("::")[0].rpartition("/")[0]


LONG = (
    "passes", "capture", "compiler", "targets/cuda", "packaging", "cli", "tools", "tests", "export", "distributed",
    "targets", "codegen", "ops",
)  # fmt: skip
"""The folders below this one that take more than half a minute, in this order; "tests" is this one without them."""


def _place(nodeid):
    """The folders that take longest come first, so that all workers end at about the same time."""
    folder = _lump(nodeid).removeprefix("tests/")
    return LONG.index(folder) if folder in LONG else len(LONG)


def pytest_collection_finish():
    """What is there when tests begin, PyTorch and TVM, lives to their end: the search for garbage leaves it alone."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class _Patch(pytest.MonkeyPatch):
    """Replaces things as pytest's does; if that is perhaps in the compiler, kernels are compiled and none is kept.

    A test that sets the variable of the kernel cache itself has what it sets.
    """

    decided = False

    def setattr(self, target, *values, **options):
        if target is not sys and not (isinstance(target, str) and target.startswith("sys.")):
            self._keep_none()
        super().setattr(target, *values, **options)

    def setitem(self, dic, name, value):
        if dic is not os.environ and dic is not sys.modules:
            self._keep_none()
        super().setitem(dic, name, value)

    def setenv(self, name, value, prepend=None):
        self.decided |= name == "FQT_KERNEL_CACHE"
        super().setenv(name, value, prepend)

    def _keep_none(self):
        if not self.decided:
            self.setenv("FQT_KERNEL_CACHE", "0")


@pytest.fixture(scope="session")
def cases(request):
    """``cases(module, fixture)``: the parameters of the tests of a module that will run and use this fixture."""

    def parameters(module, fixture):
        own = [item for item in request.session.items if getattr(item, "module", None) is module]
        return [item.callspec.params for item in own if fixture in item.fixturenames and hasattr(item, "callspec")]

    return parameters


@pytest.fixture
def monkeypatch():
    """Of pytest's name and use: variables and arguments may change without the kernels that others compiled."""
    patch = _Patch()
    yield patch
    patch.undo()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several workers, a folder's tests run on one of them: they share what its fixtures compile."""
    from xdist.scheduler import LoadScopeScheduling

    class Folders(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _lump(nodeid)

    config.option.loadscopereorder = False  # but as _place has them
    return Folders(config, log)


@pytest.fixture
def golden(request):
    """Compares text with a file beside the test, or writes it."""

    def check(name: str, text: str) -> None:
        path = request.path.parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"no {path.name}; pytest --update-golden writes it"
        assert text == path.read_text(), f"{path.name} differs; if it should, pytest --update-golden"

    return check


@pytest.fixture
def model_file(tmp_path):
    """Writes a model file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "model.py"
        path.write_text(text)
        return path

    return write


assert importlib.util.find_spec("sklearn"), "the tests need scikit-learn: pip install -e '.[dev]'"
