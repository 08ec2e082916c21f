"""Shows what is done, running, waiting or failed in a results folder, and why.

    python -m experiments.status --workdir=results/beta

Works from the files alone, so on any machine that sees the folder; where Slurm answers, it is asked
too. Exit status: 0 when all runs are finished (diverged ones are), 1 when some failed, 3 when none
failed and some are still to come.
"""

import pathlib

from absl import flags

from experiments import entry
from experiments.cluster import survey
from vae.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "The results folder.")


def main(overrides: entry.Overrides) -> int:
    """Prints the survey; returns the exit status."""
    if overrides:
        raise UserError("--config: a results folder says itself what was run; leave it out.")
    if not _WORKDIR.value:
        raise UserError("--workdir: missing. See python -m experiments.status --help.")
    path = pathlib.Path(_WORKDIR.value)
    found = survey.survey(path)
    print(survey.describe(path, found))
    return survey.exit_status(found)


if __name__ == "__main__":
    entry.start("experiments.status", main)
