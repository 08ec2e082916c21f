"""Remedies for collapse: verdicts, seed by seed."""

import pytest

from experiments.studies import remedies as study
from tests.experiments.studies import made


def found(**changes):
    """All remedies add to each metric, but for changes of (metric, what `skip` adds)."""
    cases, runs = [], []
    for remedy, fields in study.REMEDIES.items():
        for seed in range(3):
            more = dict.fromkeys(("rate", "information", "active_units"), 0.5 * (remedy != "none"))
            elbo = -0.3 * (remedy != "none")
            if remedy == "skip":
                more |= changes
                elbo = changes.get("elbo", elbo)
            values = {name: 3 + seed + add for name, add in more.items() if name != "elbo"}
            cases.append(({"remedy": remedy, "seed": seed}, values | {"ceiling": 5.9}))
            row = {"test/elbo": -24 + seed + elbo}
            runs.append(made.run(seed, row, **(study.PLAIN | fields)))
    return made.found(cases, runs)


def test_verdicts_of_remedies_that_work():
    verdicts = made.verdicts(study, found())
    assert len(verdicts) == 4 * 5 and set(verdicts.values()) == {"reproduced"}
    assert study.figure(found())


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("rate", "rate, skip − none, nats"),
        ("information", "mutual information, skip − none, nats"),
        ("active_units", "active units, skip − none"),
        ("elbo", "ELBO, skip − none, nats"),
    ],
)
def test_verdicts_of_one_that_does_not(metric, name):
    verdicts = made.verdicts(study, found(**{metric: -2.0}))
    assert {n for n, verdict in verdicts.items() if verdict != "reproduced"} == {name}
    assert verdicts[name] == "not reproduced"


def test_information_at_its_ceiling_is_said():
    note = study.measure(found())[-1].note
    of = found(information=2.7)
    assert note == "" and "cut off" in study.measure(of)[-1].note
