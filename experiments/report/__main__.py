"""Rebuilds the report of a results folder: `python -m experiments.report --workdir=DIR`."""

import pathlib
import sys

from absl import app, flags, logging

from experiments.report import write_report
from vae.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "The results folder to report on.", required=True)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}; give --workdir=DIR only")
    logging.set_verbosity(logging.WARNING)  # a library tells how it makes each font smaller
    try:
        print(write_report(pathlib.Path(_WORKDIR.value)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
