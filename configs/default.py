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
    # Cross-validation: parts that the training split is dealt into by data.seed, >= 2, of which one
    # is left out and takes the place of the test split, which is not read; null: none. The flag
    # --folds=K of experiments.run makes the K runs.
    data.folds = config_dict.placeholder(int)
    # The part that is left out: 0 to data.folds - 1.
    data.fold = 0
    # Seed of everything random about the data itself (static binarisation, folds); the same data
    # for every run seed. Whole number >= 0.
    data.seed = 0
    # Where the training examples are: device (all of them: no host work in training) or host
    # (memory, or a mapped file; batches are read ahead and sent). That changes no result: a run
    # keeps its id. Not swept.
    data.placement = "device"

    config.model = model = ml_collections.ConfigDict()
    # mlp; conv (strided convolutions, for H × W × C images, depth >= 1).
    model.net = "mlp"
    # Dimensions of z, >= 1: one number, or, of the posteriors hierarchical and ladder, one per
    # stochastic layer from the one that the decoder reads up, e.g. [64, 32, 16].
    model.latent_dim = config_dict.FieldReference(8, field_type=object)
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
    # none; plain (x + f(x)); scaled (x + f(x) / √layers); zero_init (x + g f(x), the gate g learned
    # from 0). Others than none need net mlp and equal widths.
    model.residual = "none"
    # none; concat (z is put beside the input of each of the decoder's later layers and of its
    # output: Skip-VAE, Dieng et al. 2019), which needs net mlp and residual none.
    model.latent_skip = "none"
    # p(x|z). Values in [0, 1]: bernoulli, continuous_bernoulli. Any values: gaussian, laplace,
    # student (fixed sigma); gaussian_shared, laplace_shared, student_shared (one learned scale);
    # gaussian_pixel, laplace_pixel, student_pixel (one learned scale per pixel); gaussian_optimal
    # (the analytic optimum for the batch, σ-VAE, Rybkin et al. 2021). Bytes as they are
    # (data.scaling unit, no binarisation), with bits per value as test/bpd: categorical (256
    # classes), logistic_shared, logistic_pixel (discretised logistic), logistic_mixture (ten of
    # them per pixel, Salimans et al. 2017).
    model.likelihood = "bernoulli"
    # N. Scale of the likelihoods with a fixed one, starting value of _shared, of scaled data. > 0.
    model.sigma = 1.0
    # N. student: degrees of freedom. > 0.
    model.student_df = 5.0
    # What the decoder's output is made into where it is the location of p(x|z) (gaussian, laplace,
    # student): identity (itself); sigmoid (between 0 and 1).
    model.output = "identity"
    # The decoder's initial output bias: zero; data_mean (its first output is the mean image).
    model.output_bias = "zero"
    # q(z|x): gaussian (diagonal); full (covariance); low_rank (diagonal + factors); iaf (inverse
    # autoregressive flow), coupling (flow); of several stochastic layers, with prior hierarchical:
    # hierarchical (from the bottom up, Burda et al. 2016), ladder (from the top down, joined with
    # the prior, Sønderby et al. 2016); point (no distribution: objectives autoencoder and mmd);
    # squashed, tied (what objectives log_softmax and tied take for a sample); categorical
    # (Gumbel-softmax); vq (codebook: objective vq).
    model.posterior = "gaussian"
    # What the encoder's scale head outputs, and those between stochastic layers: logvar (log σ²);
    # softplus (σ = softplus of it); softplus_ln2 (softplus of sharpness ln 2, which is 1 at 0);
    # soft_clamp (log σ = 5 tanh of a fifth of it); floored (log σ² below the point where the KL of
    # each dimension is at least model.rate_floor: δ-VAE).
    model.posterior_scale = "logvar"
    # N. floored: nats per dimension. In (0, 1e4].
    model.rate_floor = 0.1
    # low_rank: number of factors. Whole number >= 1.
    model.posterior_rank = 4
    # categorical: classes of each of latent_dim variables; vq: entries of the codebook. >= 2.
    model.codes = 16
    # vq: length of a codebook entry; latent_dim entries make a z. Whole number >= 1.
    model.code_dim = 8
    # N. vq: decay per step of the averages that make the codebook. In [0, 1).
    model.codebook_decay = 0.99
    # N. categorical: temperature at the start of training (evaluation draws hard samples). > 0.
    model.temperature = 1.0
    # N. categorical: smallest temperature. > 0.
    model.temperature_min = 0.5
    # N. categorical: steps in which the temperature falls by a factor e. > 0.
    model.temperature_steps = 1000.0
    # p(z): standard (N(0, I); uniform for discrete latents); mixture (learned Gaussians); vamp
    # (posteriors at learned pseudo-inputs, Tomczak and Welling 2018); flow (coupling flow);
    # hierarchical (each stochastic layer given the one above, the top N(0, I)).
    model.prior = "standard"
    # mixture, vamp: number of components, for vamp at most the training examples. >= 1.
    model.prior_components = 50
    # Layers of a posterior or prior that is a flow. Whole number >= 1.
    model.flow_layers = 4
    # Hidden units of each, for iaf at least latent_dim. Whole number >= 1.
    model.flow_width = 64
    # Hidden layers of each network between two stochastic layers. Whole number >= 0; 0 is linear.
    model.stochastic_depth = 2
    # Units of each, >= 1: one number, or one per pair of neighbouring layers from the bottom up.
    model.stochastic_width = config_dict.FieldReference(64, field_type=object)

    config.objective = objective = ml_collections.ConfigDict()
    # What is minimised, in nats per example. Bounds of several samples: iwae; miwae, piwae (groups
    # of samples); ciwae; renyi. Others are distortion + beta × rate (elbo) and something more:
    # capacity (|rate − capacity| in place of the rate), tcvae, factor (total correlation), dip_i,
    # dip_ii (moments of the aggregate posterior), mmd (InfoVAE, WAE), vaegan, vq; autoencoder is
    # the distortion alone. log_softmax and tied are losses of two write-ups as they print them,
    # faults and all (vae/printed.py). configs/objectives/ and, of those two, configs/seeds/ have
    # one config for each.
    objective.name = "elbo"
    # Of the gradient: reparameterization; stl (without the score of q, Roeder et al. 2017); dreg
    # (doubly reparameterised, Tucker et al. 2019); gdreg (dreg, and the same for the parameters
    # of the priors flow and hierarchical, Bauer and Mnih 2021); score (score function with
    # leave-one-out baseline, VIMCO). The objectives that are no bounds take the first two.
    objective.estimator = "reparameterization"
    # The KL in the loss: analytic; sampled; auto (analytic where it has a closed form).
    objective.kl = "auto"
    # N. Weight of the rate; 1 is the ELBO. >= 0.
    objective.beta = 1.0
    # constant; linear, sigmoid (warm-up from 0 to beta); cyclical (repeated warm-ups, Fu et al.
    # 2019).
    objective.beta_schedule = "constant"
    # N. linear, sigmoid: training steps until beta is reached. >= 0.
    objective.warmup_steps = 200.0
    # N. cyclical: number of cycles in the training. >= 1.
    objective.cycles = 4.0
    # N. cyclical: share of each cycle during which beta rises. In (0, 1].
    objective.ramp = 0.5
    # Samples of z per training example, or per group of them. Whole number >= 1.
    objective.samples = 1
    # miwae, piwae: groups of samples, over which the bound is averaged. Whole number >= 1.
    objective.groups = 1
    # N. Nats per latent dimension, as a mean over the batch, below which the rate is not penalised
    # (Kingma et al. 2016). >= 0; 0: off.
    objective.free_bits = 0.0
    # Groups of neighbouring latent dimensions that share one such floor; a divisor of latent_dim;
    # null: each dimension is a group.
    objective.free_bits_groups = config_dict.placeholder(int)
    # N. ciwae: weight of the ELBO against IWAE's bound. In [0, 1].
    objective.ciwae_beta = 0.5
    # N. renyi: order α; 1 is the ELBO, 0 IWAE's bound. In [-1000, 1000]; a bound for α >= 0.
    objective.renyi_alpha = 0.5
    # N. dreg: 0 is the bound's gradient, 1 that of the wake update (Tucker et al. 2019). In [0, 1].
    objective.dreg_alpha = 0.0
    # N. capacity: the rate that is aimed at, in nats, at the end of its rise from 0. >= 0.
    objective.capacity = 10.0
    # N. capacity: training steps of that rise. >= 0; null: all steps.
    objective.capacity_steps = config_dict.placeholder(float)
    # N. Weight of what the objective adds: tcvae (total correlation in all; 1 is the ELBO), factor
    # (the same, beside the ELBO), dip (off-diagonal), mmd, vaegan (features' error). >= 0.
    objective.penalty = 1.0
    # N. dip_i, dip_ii: weight of the diagonal. >= 0.
    objective.penalty_diagonal = 10.0
    # tcvae: estimator of the aggregate posterior's density from a batch (Chen et al. 2018):
    # stratified (unbiased), weighted (too small by up to the log of the training set's size in each
    # density: the total correlation that it reports is too large).
    objective.tc_estimator = "stratified"
    # mmd: imq, rbf, rational_quadratic, laplace.
    objective.kernel = "imq"
    # N. mmd: multiplies the kernel's length scale. > 0.
    objective.bandwidth = 1.0
    # N. vq: weight of the commitment of the encoder to its code. >= 0.
    objective.commitment = 0.25
    # What the encoder sees in training: none (x itself); gaussian (x + noise); mask (some values of
    # x set to 0).
    objective.corruption = "none"
    # N. Standard deviation of that noise, or share of the values masked. >= 0.
    objective.corruption_level = 0.3
    # factor: hidden layers of the discriminator (that of vaegan is like the encoder). >= 1.
    objective.discriminator_depth = 3
    # factor: units of each. Whole number >= 1.
    objective.discriminator_width = 256

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
    # N (null or a number is structural). A step whose gradient has a larger norm is passed over.
    # > 0; null: none is.
    optimizer.skip_norm = config_dict.placeholder(float)
    # Most updates of the encoder before each of the decoder, until the mutual information of x and
    # z no longer grows (aggressive training, He et al. 2019: 100). >= 1; 1: both together.
    optimizer.encoder_steps = 1
    # N. Multiplies the encoder's learning rate. In [0, 1e6].
    optimizer.encoder_lr_factor = 1.0
    # N. Multiplies the learning rate of a discriminator. In [0, 1e6].
    optimizer.discriminator_lr_factor = 1.0
    # N. What b1 is for a discriminator. In [0, 1).
    optimizer.discriminator_b1 = 0.5
    # Of the learning rate: constant, cosine, step, stages (eight, each three times as long as the
    # one before, Burda et al. 2016), exponential, plateau.
    optimizer.schedule = "constant"
    # N. Training steps of linear warm-up, which multiplies any schedule. >= 0; 0: none.
    optimizer.warmup_steps = 0.0
    # N. Steps: length of cosine and of all stages, interval of step, scale of exponential. > 0;
    # null: all steps.
    optimizer.decay_steps = config_dict.placeholder(float)
    # N. In [0, 1]. cosine: final fraction; step: factor per interval; stages: factor of the last
    # one; exponential: factor per decay_steps.
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
    # What the networks compute in while they train: float32; bfloat16 (products, convolutions and
    # activations; parameters, the optimiser, every sum, normalisation, log-densities and the draw
    # of z stay float32). Evaluations are in float32, so that numbers compare.
    train.precision = "float32"
    # Parts that a batch goes through in, one after the other: the same gradient, in that part of
    # the activations' memory. Divides train.batch_size; refused where a batch is more than its
    # examples (batch normalisation, total correlation, free bits, ...). Whole number >= 1.
    train.accumulate = 1
    # Activations that are computed anew on the way back in place of being kept: none, layers (the
    # inside of each hidden layer). Less memory, a third more work; the same numbers.
    train.remat = "none"

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

    config.probe = probe = ml_collections.ConfigDict()
    # Instruments of gradient flow that look at the run as it trains, joined by +: terms (gradients
    # by term of the loss, and their angles); signal (activations and what comes back, layer by
    # layer); examples (gradients of single examples, noise scale); noise (signal-to-noise ratio,
    # and where the noise is from); jacobian (singular values of decoder and encoder); hessian
    # (ends of its spectrum); collapse (units in use, information, lag of the encoder). none; all:
    # those that the model and the objective admit. What they read is in probe.jsonl and the report;
    # training stays the same to the bit.
    probe.instruments = "none"
    # Training steps between two looks, the first of which is before training. Whole number >= 1;
    # null: a fifth of the training.
    probe.every = config_dict.placeholder(int)
    # Training examples that they look at, always the same; examples and hessian look at 32 of them,
    # jacobian and the lag at 16. Whole number >= 2; null: a batch.
    probe.examples = config_dict.placeholder(int)
    # Draws of the gradient, for its noise. Whole number >= 2.
    probe.draws = 8
    # Layers to write down, joined by +, such as encoder/layer_0+decoder/output; null: all.
    probe.layers = config_dict.placeholder(str)

    config.mesh = mesh = ml_collections.ConfigDict()
    # Where it runs. That changes no result beyond rounding: a run keeps its id, and can be gone on
    # with on other devices. Not swept.
    # Devices that the runs of a population are split over. Whole number >= 1; null: as many as
    # there is use for.
    mesh.runs = config_dict.placeholder(int)
    # Devices that share each batch of a run; a divisor of train.batch_size. Times mesh.runs, it
    # must divide the number of devices. Whole number >= 1; null: as many as there is use for.
    mesh.data = config_dict.placeholder(int)

    return config.lock()
