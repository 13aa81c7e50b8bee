"""The file that ``sslmed site init`` writes: one site, its data, its resources and its rules, each line explained."""

TEMPLATE = """\
# The rules of one site. They hold in the site's own data side (`sslmed site start`), which no code of a server reaches.
# Every line is needed; what a request holds and no line below allows is refused. After a change: sslmed site check.

site: SITE                   # this site's name: letters, digits, '_', '.', '-'; it leaves with every answer
data_set: DATA_SET           # rounds, bytes and messages are counted under this name for life
data: DATA                   # where the images lie; no request can name a path
data_cache: null             # for recipes with data.cache: a folder of this site
data_list: null              # for recipes with a `listed` subset: this site's own list
state: STATE                 # ledger, keys, optimiser state: writable by the data side alone
socket: SOCKET               # the one way in and out; its folder gets mode 0750, the socket 0660
network_user: null           # user (name or number) of the network side; null: the same user as the data side (laptop)
peers: {}                    # other sites of secure sums: {east: KEY, west: KEY}, as their people read them to you from
                             # `sslmed site status` (by telephone, say); never as the server gives them
separation: enforced         # enforced: do not start while a connection to the network can be opened;
                             # processes: a laptop's trial; nothing but goodwill keeps the two sides apart

resources:
  device: cpu                # cpu, cuda or auto; a request does not choose it
  threads: 2                 # a request may ask for fewer
  memory_gb: 8               # of one round's process; above it the round fails
  seconds: 3600              # of one round; then its process is ended
  message_mb: 512            # of one request or answer; longer ones are not even read

keep:                        # what of a run is deleted, on start and once a day; each time an entry of the ledger
  days: 90                   # since it was last written to; the newest run always stays
  gigabytes: 20              # of all runs together; the oldest go first

policy:
  accept: each               # each: a new run waits for `sslmed site accept DIGEST`; listed: only digests in `digests`
  digests: []                # configurations that are accepted without the command
  hours: "00:00-24:00"       # local time in which work is done, such as "22:00-06:00"
  least:                     # a small batch and few steps are close to a gradient of single images
    examinations: 50         # patients (groups of the data set) at this site
    batch: 16                # plan.batch_size
    steps: 5                 # optimiser steps of one round
    statistics: 200          # examinations from which on means and variances of batch norm leave; below it the values
                             # that the server sent go back
  life:                      # for the whole life of the data set; reserved before the work, never given back
    rounds: 200
    messages: 2000           # answers of any kind, refusals too
    megabytes: 20000
    evaluations: 20          # of encoders on the held-out part; who could ask for many would learn its labels
  model:                     # what comes in: a planted model is an attack
    first_weights: []        # SHA-256 of a first model that is not the one drawn from the seed
    largest: 1000.0          # no number of it may be larger
    change: 2.0              # L2 norm of (new - last one received) / last one received, without means and variances
                             # that the last one had not measured yet
    late: false              # true: a run may begin here after its first round (its model cannot be compared)
  update:                    # what goes out
    largest: 1000.0          # no number of it may be larger; a diverged round is a failure, not an answer
    change: 2.0              # L2 norm of (update - model received) / model received, the same
  figures:                   # where a run asks for an evaluation (federated.evaluate); fewer patients: no figures
    patients: 50             # of the held-out part, which is never trained on
    of_each_class: 5         # patients of it in its rarest class (of each value of a label)
  privacy:                   # hides this site's data in what leaves after a round: docs/hospitals.md, "Privacy"
    clip: 1.0                # a longer change of the learned tensors is shortened to this L2 norm; null: never
    noise_multiplier: 10.0   # Gaussian noise on each of their numbers, so many times clip; means and variances of
                             # batch norm, scalars and figures are withheld then; 0: no noise, and nothing bounds
                             # what an update tells
    delta: 0.000001          # the chance that epsilon does not hold; below one over the examinations, far below
    epsilon: 8.0             # what all rounds of the data set's life may spend together; then there is no further one
    samples: 1               # under noise this number leaves in place of the number of images; say the server's people
  # The means that may leave; others are withheld, and named in the ledger. Not in the list: health_embedding_std,
  # health_effective_rank, health_uniformity, health_alignment (federated.health). They are measured in every round on
  # the same few images with a model that the server chose, so they tell more of those images than a loss does.
  scalars: [loss, missed_rounds]
  sums: optional             # required: updates leave in secure sums alone (federated.secure), or not at all
  # The whole configuration. [a, b]: one of these. {from: a, to: b}: a number, or a list of up to 16;
  # with or_null: true also null. {each: [a, b]}: a list of these.
  # name: letters, digits, '_', '.', '-'. unused: taken out before anything is done. A key without a line is refused.
  allow:
    run.name: name
    run.seed: {from: 0, to: 9007199254740991}
    run.dir: unused
    run.device: unused       # resources.device decides
    run.threads: {from: 1, to: 64, or_null: true}
    run.tensorboard: unused
    run.track: unused        # trackers follow the server's figures; this site has none
    run.start_from: [null]   # first weights travel as tensors and are compared with policy.model.first_weights
    run.continue_from: [null]
    driver: [local]
    ray: unused
    # evaluate and federated.compare are taken out where federated.evaluate is not true
    evaluate.protocols.name: [knn, linear, representation]
    evaluate.protocols.k: {from: 1, to: 1000}
    evaluate.protocols.temperature: {from: 0.001, to: 100}
    evaluate.protocols.metric: [cosine, l2]
    evaluate.protocols.weights: [similarity, uniform, distance, null]
    evaluate.protocols.normalise: [true, false]
    evaluate.protocols.learning_rates: {from: 0.000001, to: 10}
    evaluate.protocols.epochs: {from: 1, to: 1000}
    evaluate.protocols.batch_size: {from: 1, to: 4096}
    evaluate.protocols.momentum: {from: 0, to: 0.999}
    evaluate.protocols.weight_decay: {from: 0, to: 1}
    evaluate.protocols.standardise: [true, false]
    evaluate.val_fraction: unused
    evaluate.test: unused
    evaluate.pictures: unused
    evaluate.every: unused
    diagnose: unused         # nor diagnoses made
    data.name: [medmnist, episodes, abdominal, image_folder, mrnet]
    data.size: {from: 16, to: 1024, or_null: true}
    data.unit: [exam, slice]
    data.plane: [axial, coronal, sagittal]
    data.side: {from: 16, to: 1024}
    data.clip: [null]
    data.deduplicate: [true, false]
    data.classes: unused     # names of labels; a filter by class would count patients of a class
    data.workers: {from: 0, to: 8}
    views.name: [contrastive, episode]
    views.size: {from: 8, to: 512}
    views.mean: {from: -10, to: 10}
    views.std: {from: 0.0001, to: 10}
    views.crop_scale: {from: 0.05, to: 1}
    views.crop_ratio: {from: 0.1, to: 10}
    views.rotation: {from: 0, to: 180}
    views.flip: {from: 0, to: 1}
    views.vertical_flip: {from: 0, to: 1}
    views.jitter: {from: 0, to: 1}
    views.jitter_probability: {from: 0, to: 1}
    views.grey: {from: 0, to: 1}
    views.noise: {from: 0, to: 1}
    views.noise_probability: {from: 0, to: 1}
    views.fill: [reflection, border, zeros]
    views.antialias: [true, false]
    views.solarise: {from: 0, to: 1}
    views.solarise_threshold: {from: 0, to: 1}
    views.blur: {from: 0, to: 1}
    views.blur_sigma: {from: 0.01, to: 10}
    views.pixel_mm: {from: 0, to: 100, or_null: true}
    method.name: [contrastive, byol, simsiam, moco_v2, cowpro]
    method.channels: {from: 1, to: 3}
    method.momentum: {from: 0.9, to: 1}
    method.momentum_end: {from: 0.9, to: 1, or_null: true}
    method.temperature: {from: 0.01, to: 10}
    method.queue: {from: 1024, to: 65536}
    method.symmetric: [true, false]
    method.batch_norm: [batch]
    method.encoder.name: [resnet, dilated_resnet]
    method.encoder.depth: {from: 9, to: 152}
    method.encoder.width: {from: 4, to: 128}
    method.encoder.stem: [cifar, imagenet]
    method.encoder.out: {from: 8, to: 4096}
    method.encoder.stride: [4, 8, 16, 32]
    method.encoder.weights: [null]
    method.head.name: [projection, cowpro]
    method.head.hidden: {from: 16, to: 8192}
    method.head.out: {from: 8, to: 8192}
    method.head.layers: {from: 1, to: 4}
    method.head.batch_norm: [true, false]
    method.head.last_norm: [true, false]
    method.head.window: {from: 1, to: 16}
    method.head.threshold: [fixed]
    method.head.score: [cosine]
    method.predictor.name: [projection]
    method.predictor.hidden: {from: 16, to: 8192}
    method.predictor.out: {from: 8, to: 8192}
    method.predictor.batch_norm: [true, false]
    method.loss.name: [nt_xent, dcl, mio_v1, mio_v2, mio_v3, barlow_twins, vicreg]
    method.loss.temperature: {from: 0.05, to: 10}
    optim.name: [sgd, adamw, rmsprop, lars]
    optim.lr: {from: 0.000001, to: 1}
    optim.momentum: {from: 0, to: 0.999}
    optim.weight_decay: {from: 0, to: 0.1}
    optim.nesterov: [true, false]
    optim.schedule.name: [cosine, constant]
    optim.schedule.warmup_epochs: {from: 0, to: 100}
    plan.epochs: {from: 1, to: 2000}
    plan.batch_size: {from: 16, to: 4096}
    plan.micro_batch: [null]
    plan.steps_per_epoch: {from: 5, to: 10000}
    plan.draws: {from: 1, to: 64}
    plan.slices_per_exam: {from: 1, to: 64}
    plan.copies: {from: 1, to: 64, or_null: true}
    plan.validate: [null]
    plan.patience: [null]
    plan.precision: [float32, bf16]
    plan.channels_last: [true, false]
    plan.compile: [false]
    plan.deterministic: [true, false]
    plan.clip: {from: 0.001, to: 1000, or_null: true}
    plan.log_every: {from: 1, to: 1000}
    plan.checkpoint_every: unused
    plan.keep_last: unused
    plan.keep_every: unused
    plan.loader_threads: {from: 0, to: 8}
    plan.resident: [true, false]
    federated.rounds: {from: 1, to: 200}
    federated.local_epochs: {from: 1, to: 10}
    federated.strategy.name: [fedavg, fedbn]  # fedbn sends less: all tensors of norms stay here
    federated.partition: unused
    federated.pool: [all, train]
    federated.seed: {from: 0, to: 9007199254740991}
    federated.site_names: unused
    federated.held_out: {from: 0.05, to: 0.5}
    federated.held_out_groups: {from: 1, to: 100, or_null: true}
    federated.validation: {from: 0.05, to: 0.5}
    federated.share: [encoder]   # the head of a supervised method would tell labels
    federated.keep_state: [true, false]
    federated.quorum: unused
    federated.screen: unused
    federated.privacy: unused    # noise that a server adds; this site adds its own by policy.privacy
    federated.secure: [null]     # null: updates leave singly. Else a secure sum with `peers`, in these bounds:
    federated.secure.threshold: {from: 3, to: 1000, or_null: true}  # fewest sites left; null: above half, at least 3
    federated.secure.clip: {from: 0.001, to: 1000}  # largest change of one number
    federated.secure.bits: [32, 64]
    federated.timeout_s: unused
    federated.runtime: unused
    federated.compare: {each: [raw_pixels, metadata, copy_mask, random, local, pooled]}  # local: this site trains it
    federated.evaluate: [true, false]  # true: after the last round this site measures; only figures leave
    federated.health: {from: 64, to: 2048, or_null: true}  # images of it; what may leave of it: policy.scalars
"""


def filled(site: str, data: str, folder: str) -> str:
    """The file for the site ``site`` with its data at ``data`` and all its own files below ``folder``. Texts are quoted
    as YAML strings."""
    import json

    texts = {"SITE": site, "DATA_SET": site, "DATA": data, "STATE": f"{folder}/state"}
    texts |= {"SOCKET": f"{folder}/door/data.sock"}
    lines = TEMPLATE.split("\n")
    for number, line in enumerate(lines):
        key, _, rest = line.partition(": ")
        word, _, comment = rest.partition(" ")
        if word in texts:
            lines[number] = f"{key}: {json.dumps(texts[word])}  {comment.strip()}"
    return "\n".join(lines)
