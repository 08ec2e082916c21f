"""Studies: a published claim, a config or a measurement, a verdict, a figure.

A study is one module, with a row in `STUDIES`. It has

  __doc__   the claim in its first line, with the paper; then the set-up, equations, what differs
  ID        its name in the order of studies: A1 ... of closed forms, B1 ... of data, S0 ... seeds
  CONFIGS   {budget: config of the runs that it trains}; absent where it trains none
  cases     (budget) -> list of dicts: what it measures by itself, see `cases`; with
  run       (arguments, context) -> dict of arrays: one of them; both absent where there are none
  measure   (found) -> the quantities that tell, see `quantity`
  figure    (found) -> the figure, in the manner of the paper's

A budget is `quick`, minutes on two cores, or `full`.
"""

import types

from experiments.studies import (
    batchnorm_explosion,
    beta,
    bounds,
    escape,
    gradient_noise_scale,
    inference_gaps,
    infinite_gradients,
    initialization,
    iwae_snr,
    ladder,
    lagging,
    latents,
    linear_dynamics,
    linear_vae,
    path_gradients,
    priors,
    rate_distortion,
    remedies,
    residual_scaling,
    s0_vanishing,
    s1_samples,
    s2_stability,
    s3_training,
    s4_outlook,
    shattered,
    sigma_vae,
    trainable_depth,
    variance_collapse,
    very_deep,
)

# In the order of their IDs.
STUDIES: dict[str, types.ModuleType] = {
    "linear_vae": linear_vae,
    "escape": escape,
    "infinite_gradients": infinite_gradients,
    "iwae_snr": iwae_snr,
    "path_gradients": path_gradients,
    "initialization": initialization,
    "trainable_depth": trainable_depth,
    "batchnorm_explosion": batchnorm_explosion,
    "shattered": shattered,
    "residual_scaling": residual_scaling,
    "linear_dynamics": linear_dynamics,
    "gradient_noise_scale": gradient_noise_scale,
    "lagging": lagging,
    "rate_distortion": rate_distortion,
    "bounds": bounds,
    "beta": beta,
    "latents": latents,
    "ladder": ladder,
    "sigma_vae": sigma_vae,
    "inference_gaps": inference_gaps,
    "variance_collapse": variance_collapse,
    "remedies": remedies,
    "priors": priors,
    "very_deep": very_deep,
    "s0_vanishing": s0_vanishing,
    "s1_samples": s1_samples,
    "s2_stability": s2_stability,
    "s3_training": s3_training,
    "s4_outlook": s4_outlook,
}
BUDGETS = ("quick", "full")
