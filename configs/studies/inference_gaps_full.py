"""VAEs of which the gaps of inference are measured: 100 epochs, 5 seeds (Cremer et al. 2018).

What it is: configs/studies/inference_gaps.py, longer and with more seeds.

    python -m experiments.study --name=inference_gaps --budget=full --data_dir=DIR \\
        --workdir=results/studies

or, for the runs alone, --config=configs/studies/inference_gaps_full.py of experiments.run. What to
expect: as there.
"""

import ml_collections

from configs.studies import inference_gaps
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = inference_gaps.get_config()
    config.train.epochs = 100
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(5))
