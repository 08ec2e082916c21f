"""A deep VAE's top layers die; BatchNorm and warm-up revive them (Sønderby et al. 2016).

Theirs (sections 3.1 and 3.2): in a VAE of five stochastic layers inferred from the bottom up,

    q(z|x) = q(z_1|x) q(z_2|z_1) ... q(z_L|z_{L−1}),

nothing above the second layer is used: each unit's KL(q(z_l|·) || p(z_l|·)) is 0. BatchNorm in all
networks and a warm-up of β from 0 to 1 bring units back; the ladder, whose q is joined with the
prior from the top down, q(z_l|z_{l+1}, x) ∝ p(z_l|z_{l+1}) N(z_l; what x says), uses all layers and
has the better bound.

Here three layers, networks of a fifth of the width, and 60 epochs on 8,000 images
(configs/studies/ladder.py); at full budget their recipe (configs/studies/ladder_full.py). A layer's
KL is a mean over test images of log q(z_l|·) − log p(z_l|·). A unit counts as dead below 0.01 nats,
a layer therefore below 0.01 nats times its units; a unit is active as in Burda et al. 2016, by the
variance of its mean, of which the layers below are at theirs. Widths, epochs and seeds were settled
after first looks, and the rows on active units were added then.
"""

from experiments.report import canvas, style
from experiments.studies.cases import Found
from experiments.studies.quantity import Quantity, by_seed, difference, of_seeds

ID = "B4"
CONFIGS = {"quick": "configs/studies/ladder.py", "full": "configs/studies/ladder_full.py"}
POSTERIORS = {"hierarchical": "VAE", "ladder": "ladder"}
# (BatchNorm, warm-up): what is said of it.
REMEDIES = {
    (False, False): "",
    (False, True): " + warm-up",
    (True, False): " + BN",
    (True, True): " + BN + warm-up",
}
PLAIN, BOTH = (False, False), (True, True)
# Nats: what a dead unit stays below; and what is drawn as no more.
DEAD, FLOOR = 0.01, 1e-4
_SOURCE = "Sønderby et al. 2016, section 3.2"


def layers(found: Found) -> tuple[int, ...]:
    """Units of each stochastic layer, from the bottom up."""
    return tuple(found.results.runs[0].setting("model.latent_dim"))


def of(found: Found, metric: str, posterior: str, remedy: tuple[bool, bool]) -> dict[int, float]:
    """{seed: test metric} of the runs with a posterior and a remedy."""
    batch, warm = remedy
    steps = {run.setting("objective.warmup_steps") for run in found.results.runs}
    return by_seed(
        found.results,
        f"test/{metric}",
        model__posterior=posterior,
        model__norm="batch" if batch else "none",
        objective__warmup_steps=max(steps) if warm else min(steps),
    )


def above(
    found: Found, kind: str, posterior: str, remedy: tuple[bool, bool], bottom: int = 2
) -> dict[int, float]:
    """{seed: the sum of `kind` over the layers above layer `bottom`}."""
    tops = range(bottom + 1, 1 + len(layers(found)))
    each = [of(found, f"{kind}_z{layer}", posterior, remedy) for layer in tops]
    return {seed: sum(values[seed] for values in each) for seed in each[0]}


def measure(found: Found) -> list[Quantity]:
    """What the layers above the second are used for, with each remedy, gains, and the bounds."""
    least = DEAD * sum(layers(found)[2:])
    rows = []
    for posterior, name in POSTERIORS.items():
        for remedy, how in REMEDIES.items():
            label, rate = name + how, above(found, "rate", posterior, remedy).values()
            units = above(found, "active_units", posterior, remedy).values()
            if posterior == "hierarchical" and remedy == PLAIN:
                asked = {"expected": least, "relation": "<=", "source": _SOURCE}
                dead = {"expected": 0, "tolerance": 0.5, "source": _SOURCE}
            elif remedy == BOTH:
                asked = {"expected": least, "relation": ">=", "source": _SOURCE}
                dead = {}
            else:
                asked, dead = {}, {}
            rows.append(of_seeds(f"KL above the second layer, {label}, nats", rate, **asked))
            rows.append(of_seeds(f"active units above the second layer, {label}", units, **dead))
    return [*rows, *_gains(found), *_bounds(found)]


def _gains(found: Found) -> list[Quantity]:
    """What BatchNorm and warm-up together add to the top of the VAE."""
    rows = []
    for bottom, place in ((1, "first"), (2, "second")):
        for kind, what, unit in (("rate", "KL", ", nats"), ("active_units", "active units", "")):
            both, plain = (above(found, kind, "hierarchical", r, bottom) for r in (BOTH, PLAIN))
            name = f"{what} above the {place} layer, VAE + BN + warm-up − VAE{unit}: the sign"
            gain = difference(both, plain)
            rows.append(of_seeds(name, gain, 0, relation=">=", source=_SOURCE))
    return rows


def _bounds(found: Found) -> list[Quantity]:
    """ELBOs: of each, and what remedies and the ladder gain."""
    elbo = {
        (posterior, remedy): of(found, "elbo", posterior, remedy)
        for posterior in POSTERIORS
        for remedy in REMEDIES
    }
    rows = [
        of_seeds(f"ELBO, {POSTERIORS[posterior]}{REMEDIES[remedy]}, nats", values.values())
        for (posterior, remedy), values in elbo.items()
    ]
    for name, better, worse in (
        ("VAE + BN + warm-up − VAE", ("hierarchical", BOTH), ("hierarchical", PLAIN)),
        ("ladder + BN + warm-up − VAE + BN + warm-up", ("ladder", BOTH), ("hierarchical", BOTH)),
    ):
        gain = difference(elbo[better], elbo[worse])
        expectation = {
            "expected": 0,
            "relation": ">=",
            "source": "Sønderby et al. 2016, section 3.1",
        }
        note = _unused(found, *worse)
        rows.append(of_seeds(f"ELBO, {name}, nats: the sign", gain, **expectation, note=note))
    return rows


def _unused(found: Found, posterior: str, remedy: tuple[bool, bool]) -> str:
    """A note on seeds that ended without any latent, which no remedy of the top layers is for."""
    rates = of(found, "rate", posterior, remedy)
    lost = [seed for seed, rate in rates.items() if rate < DEAD]
    if not lost:
        return ""
    return (
        f"{len(lost)} of {len(rates)} seeds of {POSTERIORS[posterior]}{REMEDIES[remedy]} use no "
        "latent in any layer, which makes the interval wide"
    )


def figure(found: Found):
    """The KL of each layer, a point for each seed, a line through the means of each remedy."""
    sheet, panels = canvas.new_figure(1, 2, 6.8, 2.8)
    count = len(layers(found))
    for panel, (posterior, name) in zip(panels, POSTERIORS.items(), strict=True):
        for place, (remedy, how) in enumerate(REMEDIES.items()):
            color, shift = style.PETROFF[place], 0.08 * (place - 1.5)
            values = [
                list(of(found, f"rate_z{layer}", posterior, remedy).values())
                for layer in range(1, 1 + count)
            ]
            where = [layer + shift for layer in range(1, 1 + count)]
            label = how.removeprefix(" + ") or "neither"
            means = [max(sum(v) / len(v), FLOOR) for v in values]
            panel.plot(where, means, "-", color=color, label=label)
            for x, y in zip(where, values, strict=True):
                shown = [max(v, FLOOR) for v in y]
                panel.plot([x] * len(y), shown, "o", color=color, markersize=3)
        panel.set_yscale("log")
        ticks = {FLOOR: "≤ 0.0001", 1e-3: "0.001", 0.01: "0.01", 0.1: "0.1", 1: "1", 10: "10"}
        panel.set_yticks(list(ticks), list(ticks.values()))
        panel.minorticks_off()
        panel.set_xticks(range(1, 1 + count), [f"z{i}" for i in range(1, 1 + count)])
        panel.set_xlabel("stochastic layer")
        panel.set_title(name)
    panels[0].set_ylabel("KL, nats")
    handles = panels[0].get_legend_handles_labels()
    sheet.legend(*handles, loc="outside upper center", ncols=len(REMEDIES))
    return sheet
