"""From a results folder to what one shows: report.html and the paper figures.

`write_report` reads only the folder (see `results`), so a report can be rebuilt anywhere, any time,
without JAX and without the data.
"""

import os
import pathlib


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes `report.html` and `figures/*.png, *.pdf` into a results folder, finished or not.

    Args:
      workdir: the results folder.

    Returns:
      The path of report.html.

    Raises:
      UserError: `workdir` is no results folder, a file in it is damaged, or it cannot be written
        to.
    """
    # Imported here: the launcher imports this package at start-up and draws hours later.
    from experiments.report.figures import write_figures
    from experiments.report.page import page
    from experiments.report.results import read_results
    from vae.errors import UserError

    results = read_results(workdir)
    path = results.workdir / "report.html"
    try:
        # The page last: where there is one, there are the figures.
        write_figures(results, results.workdir / "figures")
        write_whole(path, page(results).encode("utf-8"))
    except OSError as error:
        raise UserError(
            f"workdir: cannot write the report into {results.workdir} ({error.strerror or error}); "
            "make room or permit writing, then run `python -m experiments.report --workdir=DIR`"
        ) from error
    return path


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes under a temporary name and renames, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
