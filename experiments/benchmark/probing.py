"""What looking at the gradients costs of a training."""

import jax

from configs import mnist
from experiments import programs
from experiments.benchmark.library import EPOCH, Training, mnist_overrides, population_plan
from experiments.benchmark.measure import Row, Settings, in_turns, ratio, spread

# What is switched on; and the share of the training's time that it may take.
CASES = ("terms+signal", "all")
SHARE = 0.1


def probing(settings: Settings) -> list[Row]:
    """All looks of a training at the default cadence, over its steps; one run, 784-500-20."""
    overrides, source = mnist_overrides(settings)
    rows = []
    for names in settings.pick(CASES, CASES[:1]):
        plan = population_plan(mnist, overrides | {"probe.instruments": names})
        pool = programs.Programs()
        look = pool.get("probe", plan)
        pool.close()
        training = Training(plan)

        def one_look(_, look=look, training=training):
            jax.block_until_ready(look(training.population.states, training.examples))

        count = settings.pick(EPOCH, 2)
        seconds = in_turns({"step": training, "look": one_look}, count, settings.pick(7, 2))
        # At step 0, at multiples of probe.every, and at the end.
        looks = 2 + (plan.num_steps - 1) // plan.probe.every
        all_looks, all_steps = seconds["look"] * count * looks, seconds["step"] * plan.num_steps
        note = f"{looks} looks, {plan.num_steps:,} steps; {source}"
        rows += [
            Row("probing", f"{names}: one look", **spread(seconds["look"] * count), unit="s"),
            Row(
                "probing",
                f"{names}: looks / training",
                **ratio(all_looks, all_steps),
                unit="ratio",
                target=("<=", SHARE),
                note=note,
            ),
        ]
    return rows
