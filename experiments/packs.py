"""Whether the runs of a population go side by side (`vmap`) or in turn (`map`): who decides.

The first that has a say: the user (--pack); an earlier execution on the folder, because a resumed
run goes on bit for bit; a trial of both, where the rule is in doubt and training is long; the rule.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from vae.nets import NETS
from vae.spec import Spec

# On a CPU, matrices of this many parameters in all fill the cores by themselves: runs then go one
# after the other. `python -m experiments.benchmark packing` prints the measurement behind it; on
# two cores the two ways are even at 150,000 for 16 runs and at 600,000 for 4. A factor of two
# beyond these the rule is sure.
MAP_FROM_PARAMS = 300_000
IN_DOUBT = (75_000, 1_200_000)

# A trial compiles a program that is then not used, and makes some ten steps: seconds. What is in
# doubt takes milliseconds for a step of a run, so that less than this is over before it pays.
TRIAL_FROM_STEPS, TRIAL_FROM_RUN_STEPS = 200, 2000


class Choice(NamedTuple):
    """`vmap` or `map`, and what chose it, in a word or two for the plan's table."""

    pack: str
    why: str


# What the rule says -> what a measurement says.
Trial = Callable[[str], Choice]


def by_rule(spec: Spec, num_params: int) -> tuple[str, bool]:
    """(`vmap` or `map`, whether that is sure) on this kind of device.

    An accelerator is filled by many runs. On a CPU convolutions go in turn: batched over runs,
    their patches leave the caches. How much either matters depends on the sizes.
    """
    images = NETS[spec.model.net].images
    if jax.default_backend() != "cpu":
        return "vmap", not images
    pack = "map" if images or num_params >= MAP_FROM_PARAMS else "vmap"
    least, most = IN_DOUBT
    return pack, not images and not least <= num_params <= most


def choose(
    asked: str, spec: Spec, num_params: int, num_steps: int, num_runs: int, trial: Trial | None
) -> Choice:
    """How the runs of a group go.

    Args:
      asked: `vmap`, `map` or `auto`. num_runs: those of one device. trial: measures; None: nothing
        is to be measured now.
    """
    if asked != "auto":
        return Choice(asked, "asked for")
    pack, sure = by_rule(spec, num_params)
    long = num_steps >= TRIAL_FROM_STEPS and num_steps * num_runs >= TRIAL_FROM_RUN_STEPS
    if num_runs == 1 or sure or not long:
        return Choice(pack, "by rule")
    return trial(pack) if trial else Choice(pack, "by rule, unmeasured")
