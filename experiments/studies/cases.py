"""Measurements that a study makes itself, each kept in a file of its own: reruns resume.

A case is a dict of numbers and words, such as {"samples": 100, "seed": 0}; what is measured in it
is a dict of arrays. A case is measured anew when it, or the code of the study's own file, or of
one here that it shares with others, has changed; docstrings and comments may.
"""

import ast
import functools
import hashlib
import inspect
import io
import json
import pathlib
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.report.results import Results
from vae import writers

Arguments = dict[str, Any]
_HEADER = "case"


class Case(NamedTuple):
    """One measured case."""

    arguments: Arguments
    values: dict[str, np.ndarray]
    seconds: float


class Context(NamedTuple):
    """What measuring a case may read.

    Attributes:
      folder: the study's own, with the runs of its config in it.
      results: of those runs, or None.
      data_dir: where TFDS data are, or None for the default place.
    """

    folder: pathlib.Path
    results: Results | None
    data_dir: str | None


class Found(NamedTuple):
    """All that a study found: results of its runs, where it has any, and its cases in order."""

    budget: str
    results: Results | None = None
    cases: tuple[Case, ...] = ()

    def of(self, **arguments: Any) -> list[Case]:
        """The cases with these arguments."""
        return [c for c in self.cases if all(c.arguments[n] == v for n, v in arguments.items())]

    @property
    def seconds(self) -> float:
        """Of training, evaluating and measuring."""
        runs = self.results.runs if self.results else ()
        spent = [run.number("wall_s") for run in runs if run.status == "ok"]
        return float(np.nansum(spent)) + sum(case.seconds for case in self.cases)


def of_study(study: types.ModuleType, budget: str) -> list[Arguments]:
    """The cases of a study at a budget; none where it measures its runs alone."""
    return study.cases(budget) if hasattr(study, "cases") else []


def file_of(study: types.ModuleType, folder: pathlib.Path, arguments: Arguments) -> pathlib.Path:
    """Where a case is kept."""
    return folder / "cases" / f"{fingerprint(study, arguments)}.npz"


def fingerprint(study: types.ModuleType, arguments: Arguments) -> str:
    """12 hexadecimal digits of the arguments and of the code, see the module's docstring."""
    shared = [v for v in vars(study).values() if isinstance(v, types.ModuleType)]
    shared = [v for v in shared if v.__name__.startswith("experiments.studies.")]
    code = (_code(inspect.getsource(part)) for part in (study, *shared))
    text = json.dumps(arguments, sort_keys=True) + "".join(code)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _code(source: str) -> str:
    """Python without its docstrings, comments and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def read(path: pathlib.Path) -> Case | None:
    """A case that was kept, or None where there is none, or a damaged one."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
        header = json.loads(bytes(values.pop(_HEADER)))
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:  # zipfile has its own, which is no ValueError
        if type(error).__name__ != "BadZipFile":
            raise
        return None
    return Case(header["arguments"], values, header["seconds"])


def measure(study: types.ModuleType, context: Context, arguments: Arguments) -> Case:
    """The case as kept, or measured and kept."""
    path = file_of(study, context.folder, arguments)
    if (kept := read(path)) is not None:
        return kept
    started = time.monotonic()
    values = {name: np.asarray(v) for name, v in study.run(arguments, context).items()}
    case = Case(arguments, values, time.monotonic() - started)
    header = json.dumps({"arguments": arguments, "seconds": case.seconds}).encode()
    writers.write_npz(path, {**values, _HEADER: np.frombuffer(header, np.uint8)})
    return case


def measure_all(
    study: types.ModuleType,
    context: Context,
    budget: str,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> tuple[Case, ...] | None:
    """Every case of a study, one after the other; None when stopped."""
    done = []
    asked = of_study(study, budget)
    for number, arguments in enumerate(asked, 1):
        if stop():
            return None
        kept = file_of(study, context.folder, arguments).exists()
        case = measure(study, context, arguments)
        what = ", ".join(f"{name} {value}" for name, value in arguments.items())
        how = "kept" if kept else f"{case.seconds:.1f} s"
        say(f"  {number}/{len(asked)}  {what}: {how}")
        done.append(case)
    return tuple(done)


def kept(study: types.ModuleType, folder: pathlib.Path, budget: str) -> tuple[Case, ...]:
    """The cases that are there already, of those that a budget asks for."""
    files = (file_of(study, folder, arguments) for arguments in of_study(study, budget))
    return tuple(case for file in files if (case := read(file)) is not None)
