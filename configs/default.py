"""Every field of a config, with its meaning, unit and allowed values.

What it is: the base of every other config, and a run of its own. A small VAE on scikit-learn's
digits (1,797 real images of 8 × 8 pixels that come with the package, so nothing is downloaded).

    python -m experiments.run --config=configs/default.py --workdir=results/default

Set a field with ``--config.model.depth=3``, sweep it with ``--sweep model.depth=1,2,3``. ``null``
is allowed where a comment says so. A field is marked N when it is *numeric*: runs that differ only
in such fields train together in one compiled program. A field without the mark is *structural*:
each of its values is compiled on its own.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """A locked config: a misspelt field is an error."""
    config = ml_collections.ConfigDict()

    # N. Initialisation, batches and noise are functions of (seed, step). 0 to 2**32 - 1.
    config.seed = 0

    config.data = data = ml_collections.ConfigDict()
    # digits (embedded); tfds:NAME (TensorFlow Datasets, e.g. tfds:mnist); npz:PATH (arrays train
    # and test, uint8 or float, [N, H, W], [N, H, W, C] or [N, D]; optional train_labels,
    # test_labels); call:MODULE:FUNCTION (your own function, which returns such arrays).
    data.source = "digits"
    # The folder of prepared TFDS data; null: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    data.dir = config_dict.placeholder(str)
    # The split to train on, whole or sliced: train, train[:8000], train[:80%].
    data.train_split = "train"
    # The split of test/*, which shares no example with the training split: test, train[80%:].
    data.test_split = "test"
    # none; threshold (pixel >= 1/2); static (each pixel drawn once, by data.seed); dynamic (drawn
    # afresh at every training step). A pixel in [0, 1] is the probability of a 1, so data.scaling
    # must be unit.
    data.binarization = "dynamic"
    # unit ([0, 1]); symmetric ([-1, 1]); standardize (mean 0, variance 1 over the training split);
    # none (values as stored). The Bernoulli likelihood needs unit.
    data.scaling = "unit"
    # Seed of everything random about the data itself (static binarisation); the same data for every
    # run seed. Whole number >= 0.
    data.seed = 0

    config.model = model = ml_collections.ConfigDict()
    # mlp; conv (strided convolutions, for H × W × C images, depth >= 1).
    model.net = "mlp"
    # Dimensions of z. Whole number >= 1.
    model.latent_dim = 8
    # Hidden layers of the encoder, and of the decoder. Whole number >= 0; 0 is a linear model.
    model.depth = 2
    # Units (conv: channels) of a hidden layer, >= 1: one number for all layers, or one per layer in
    # the encoder's order, e.g. [500, 200] with depth 2; the decoder mirrors it.
    model.width = config_dict.FieldReference(128, field_type=object)
    # relu, tanh, sigmoid, gelu, silu, leaky_relu, elu, identity.
    model.activation = "relu"
    # none; layer (LayerNorm); batch (BatchNorm: examples of a batch are then coupled).
    model.norm = "none"
    # Initial weights: glorot, he, lecun, orthogonal, uniform (within ± 1 / √fan-in).
    model.init = "glorot"
    # N. Multiplies the initial weights. > 0.
    model.init_gain = 1.0
    # none; plain (x + f(x)); scaled (x + f(x) / √depth); zero_init (x + g f(x), the gate g learned
    # from 0). Others than none need net mlp and equal widths.
    model.residual = "none"
    # p(x|z): bernoulli (values in [0, 1]); gaussian (fixed sigma); gaussian_shared (one learned
    # variance); gaussian_pixel (one learned variance per pixel); gaussian_optimal (the analytic
    # optimum for the batch, σ-VAE, Rybkin et al. 2021).
    model.likelihood = "bernoulli"
    # N. Standard deviation of gaussian, starting value of gaussian_shared, of scaled data. > 0.
    model.sigma = 1.0
    # What the encoder's scale head outputs: logvar (log σ²); softplus (σ = softplus of it).
    model.posterior_scale = "logvar"
    # The decoder's initial output bias: zero; data_mean (its first output is the mean image).
    model.output_bias = "zero"

    config.objective = objective = ml_collections.ConfigDict()
    # elbo: minimise distortion + beta × rate, in nats per example.
    objective.name = "elbo"
    # N. Weight of the rate; 1 is the ELBO. >= 0.
    objective.beta = 1.0
    # constant; linear (warm-up from 0 to beta); cyclical (repeated warm-ups, Fu et al. 2019).
    objective.beta_schedule = "constant"
    # N. linear: training steps until beta is reached. >= 0.
    objective.warmup_steps = 200.0
    # N. cyclical: number of cycles in the training. >= 1.
    objective.cycles = 4.0
    # N. cyclical: share of each cycle during which beta rises. In (0, 1].
    objective.ramp = 0.5
    # Samples of z per training example. Whole number >= 1.
    objective.samples = 1
    # N. Nats per latent dimension, as a mean over the batch, below which the rate is not penalised
    # (Kingma et al. 2016). >= 0; 0: off.
    objective.free_bits = 0.0

    config.optimizer = optimizer = ml_collections.ConfigDict()
    # adam, adamw, sgd, rmsprop, adagrad, adamax.
    optimizer.name = "adam"
    # N. Peak learning rate. In (0, 1e6].
    optimizer.learning_rate = 1e-3
    # N. sgd and rmsprop: momentum. In [0, 1).
    optimizer.momentum = 0.9
    # N. adam, adamw, adamax: decay per step of the average of the gradient. In [0, 1).
    optimizer.b1 = 0.9
    # N. adam, adamw, adamax, rmsprop: decay per step of the average of its square (adamax: of its
    # running maximum). In [0, 1).
    optimizer.b2 = 0.999
    # N. Added to the denominator of adam, adamw, adamax, rmsprop and adagrad. > 0.
    optimizer.eps = 1e-8
    # N. adamw: decoupled decay; others: L2 term added to the gradient. In [0, 1e6]; 0: off.
    optimizer.weight_decay = 0.0
    # N. Largest global L2 norm of a gradient, > 0; null: no clipping.
    optimizer.clip_norm = config_dict.placeholder(float)
    # Of the learning rate: constant, cosine, step, exponential, plateau.
    optimizer.schedule = "constant"
    # N. Training steps of linear warm-up, which multiplies any schedule. >= 0; 0: none.
    optimizer.warmup_steps = 0.0
    # N. Steps: length of cosine, interval of step, scale of exponential. > 0; null: all steps.
    optimizer.decay_steps = config_dict.placeholder(float)
    # N. In [0, 1]. cosine: final fraction; step: factor per interval; exponential: factor per
    # decay_steps.
    optimizer.decay_rate = 0.1
    # plateau: factor on the learning rate when the training loss stops falling. In (0, 1).
    optimizer.plateau_factor = 0.5
    # plateau: windows without improvement before that. Whole number >= 1.
    optimizer.plateau_patience = 10
    # plateau: training steps averaged into one loss value. Whole number >= 1; null: one epoch.
    optimizer.plateau_window = config_dict.placeholder(int)
    # N (null or a number is structural). Decay per step of the parameters' moving average, which is
    # then what gets evaluated. In [0, 1); null: no average.
    optimizer.ema_decay = config_dict.placeholder(float)

    config.train = train = ml_collections.ConfigDict()
    # Length of training in passes over the training split. Whole number >= 1, or null when
    # train.steps gives it: exactly one of the two is set.
    train.epochs = 50
    # Length of training in steps. Whole number >= 1, or null when train.epochs gives it.
    train.steps = config_dict.placeholder(int)
    # Examples per step, at most the size of the training split. Whole number >= 1.
    train.batch_size = 128

    config.eval = evaluation = ml_collections.ConfigDict()
    # Training steps between two log lines (with an evaluation). Whole number >= 1; null: a
    # twentieth of the training.
    evaluation.every = config_dict.placeholder(int)
    # Samples of z per example when evaluating the distortion. Whole number >= 1.
    evaluation.samples = 1
    # Importance samples per test example of nll (the K that is reported with it). 0: no nll.
    evaluation.iw_samples = 100
    # Training examples for train_eval/*. Whole number >= 1; null: as many as the test split has.
    evaluation.train_limit = config_dict.placeholder(int)

    return config.lock()
