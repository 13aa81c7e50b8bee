"""What a recipe for a seen set says: views, method, optimiser, plan, evaluation, driver, federation.

Every choice comes with a remark, which stands above its section in the recipe. The values are those of the recipes that
come with the program, which docs/measured.md has figures of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sslmed_dist.data.dataset import Dataset
from sslmed_dist.printable import plural
from sslmed_dist.verbs.init.layout import Seen, has_labels

Tree = dict[str, Any]
# Largest sides that the encoder sees, in pixels; smaller images stay as they are.
SIDE = {"cpu": 96, "cuda": 224}
BATCH = {"cpu": 128, "cuda": 256}
FEWEST = 8  # samples of a batch: fewer make no negatives to speak of
FEW_PIXELS = 48  # up to this side the stem keeps the resolution, as usual for CIFAR
MOST_DRAWS = 16  # slices of an exam in one pass
ROUNDS = 10
FEWEST_AT_SITE, MANY_AT_SITE = 3, 20  # patients of a site: below which it cannot take part, and is small
CHAINS: Mapping[str, tuple[str, Tree]] = {
    "photographs": (
        "colour photographs: SimCLR's crops, flips and colours (Chen et al. 2020), crops of a fifth and more",
        {"crop_scale": [0.2, 1.0], "flip": 0.5, "jitter": [0.4, 0.4, 0.4, 0.1], "grey": 0.2},
    ),
    "colour": (
        "medical colour images: hue and saturation move little, for the stain or the skin is what they show; up and "
        "left have no meaning",
        {"crop_scale": [0.3, 1.0], "flip": 0.5, "vertical_flip": 0.5, "jitter": [0.2, 0.2, 0.1, 0.02], "grey": 0.0},
    ),
    "grey": (
        "grey images: no flip, for left and right differ in a body; large crops, small rotations, brightness and "
        "contrast",
        {"crop_scale": [0.6, 1.0], "flip": 0.0, "rotation": 5, "jitter": [0.3, 0.3, 0.0, 0.0], "grey": 0.0},
    ),
    "slices": (
        "slices of scans: no flip, for left and right differ in a body; large crops, rotations, brightness, contrast "
        "and a little noise",
        {
            "crop_scale": [0.7, 1.0],
            "flip": 0.0,
            "rotation": 10,
            "jitter": [0.4, 0.4, 0.0, 0.0],
            "grey": 0.0,
            "noise": 0.02,
        },
    ),
}


@dataclass(frozen=True)
class Asked:
    """The options of the command line. ``sites``: of a federation, 0 for none. ``device`` is cpu or cuda, ``cores`` and
    ``gpus`` are those that this process may use."""

    minutes: float
    medical: bool
    sites: int
    ray: bool
    device: str
    cores: int
    gpus: int


Sections = dict[str, tuple[list[str], Tree]]  # section -> remarks above it, its keys


def sections(seen: Seen, dataset: Dataset, measured: Dataset, asked: Asked) -> Sections:
    """The recipe before its length is known: ``plan.epochs`` is 1. ``dataset`` is the training split, ``measured`` the
    same as an evaluation reads it (slices in place of exams)."""
    made: Sections = {"data": (list(seen.remarks), dict(seen.data))}
    made["views"] = views(seen, dataset, asked)
    made["method"] = method(made["views"][1]["size"], asked)
    words = "of the recipes that come with the program; not searched for on this data"
    schedule = {"schedule": {"name": "cosine"}}
    made["optim"] = ([words], {"name": "sgd", "lr": 0.06, "momentum": 0.9, "weight_decay": 5.0e-4, **schedule})
    made["plan"] = plan(seen, dataset, asked)
    made["evaluate"] = evaluation(seen, measured, asked)
    if asked.ray:
        made["driver"], made["ray"] = ([], {}), workers(asked, made["plan"][1])
    return made


def views(seen: Seen, dataset: Dataset, asked: Asked) -> tuple[list[str], Tree]:
    """Which chain of views, and at which size."""
    if seen.exams:
        kind = "slices"
    elif dataset.channels == 1:
        kind = "grey"
    else:
        kind = "colour" if asked.medical or seen.medical else "photographs"
    words, chain = CHAINS[kind]
    size = min(SIDE[asked.device], int(seen.data.get("size", seen.short)))
    remarks = [words, f"{size} x {size} pixels of images whose shorter side is {seen.short}, typically"]
    if kind == "photographs":
        remarks.append("for medical colour images write the recipe with --medical: their colours mean something")
    return remarks, {"name": "contrastive", "size": size, **chain}


def method(size: int, asked: Asked) -> tuple[list[str], Tree]:
    """Encoder, head and loss for this machine."""
    small = asked.device == "cpu"
    encoder = {"name": "resnet", "depth": 9 if small else 18, "stem": "cifar" if size <= FEW_PIXELS else "imagenet"}
    encoder["width"] = 16 if small else 64
    head = {"name": "projection", "hidden": 128 if small else 512, "out": 64 if small else 128}
    head |= {"batch_norm": True, "last_norm": True}
    machine = f"{asked.cores} CPU cores and no GPU" if small else f"{plural(asked.gpus, 'GPU')}"
    remark = f"a ResNet-{encoder['depth']} of width {encoder['width']} for {machine}; MIOv3 (thesis, Eq. 5.21)"
    loss = {"name": "mio_v3", "temperature": 0.2}
    return [remark], {"name": "contrastive", "encoder": encoder, "head": head, "loss": loss}


def plan(seen: Seen, dataset: Dataset, asked: Asked) -> tuple[list[str], Tree]:
    """Batch and passes. ``ValueError`` for too few samples."""
    draws, count = 1, len(dataset)
    if seen.exams:
        counts = getattr(dataset, "counts", torch.ones(1))
        draws = min(max(int(torch.as_tensor(counts).float().median()), 1), MOST_DRAWS)
    rows = count * draws
    if rows < FEWEST:
        raise ValueError(f"{seen.data['root']}: {rows} training images; expected at least {FEWEST}")
    largest = 48 if seen.exams and asked.device == "cpu" else BATCH[asked.device]
    batch = FEWEST
    while batch * 2 <= min(largest, max(rows // 4, FEWEST)):
        batch *= 2
    batch = largest if batch * 2 > largest and rows >= 4 * largest else batch
    keys: Tree = {"epochs": 1, "batch_size": batch}
    if draws > 1:
        keys["draws"] = draws
    if asked.device == "cuda":
        keys |= {"precision": "auto", "channels_last": "auto"}
    else:
        keys["channels_last"] = True
    keys["log_every"] = 10
    remarks = [f"{count} {'examinations' if seen.exams else 'images'} train"]
    remarks += ["channels_last: encoders of width 16 train 1.4 times as fast on a CPU"] if asked.device == "cpu" else []
    remarks += [f"{draws} random slices of each in an epoch"] if draws > 1 else []
    return remarks, keys


def evaluation(seen: Seen, dataset: Dataset, asked: Asked) -> tuple[list[str], Tree]:
    """What is measured, on which split; nothing where labels or a split to measure on are not there."""
    test = next((name for name in ("test", "val") if name in seen.splits), None)
    if not has_labels(dataset):
        reason = "no labels, or one class alone: nothing is measured here; sslmed verdict tells whether it learns"
        return [reason], {"protocols": []}
    if test is None:
        return ["no split to measure on, so nothing is measured; sslmed verdict tells whether it learns"], {
            "protocols": []
        }
    keys: Tree = {"data": dict(seen.measured)} if seen.measured else {}
    if "clip" in seen.measured:
        protocols: list[Tree] = [{"name": "exam_probe"}]
    else:
        groups = len(torch.unique(dataset.groups))
        neighbours = 200 if groups >= 2000 and not asked.sites else 20 if groups >= 80 else 5
        neighbours = 10 if seen.exams else neighbours
        protocols = [{"name": "knn", "k": neighbours}, {"name": "linear"}]
    patients = "" if bool((dataset.groups == dataset.ids).all()) else "; intervals are over patients or exams"
    remarks = [f"on the split {test}, beside a random encoder of the same shape and raw pixels{patients}"]
    if test != "test":
        keys["test"] = test
    return remarks, {**keys, "protocols": protocols}


def workers(asked: Asked, plan: Mapping[str, Any]) -> tuple[list[str], Tree]:
    """Ray's workers on this machine, as many as share the batch evenly."""
    most = asked.gpus or asked.cores
    count = max(n for n in range(1, most + 1) if plan["batch_size"] % n == 0)
    keys: Tree = {"num_workers": count}
    if asked.gpus:
        keys["gpus_per_worker"] = 1
    return [f"one worker for each {'GPU' if asked.gpus else 'core'} of this machine that can share the batch"], keys


def federation(everything: Dataset, asked: Asked) -> tuple[list[str], Tree]:
    """How all samples are dealt to simulated sites: by the data's own sites where there are as many, else by patient,
    else at random. ``ValueError`` for too few patients."""
    sites = 0 if everything.sites is None else len(torch.unique(everything.sites))
    patients = len(torch.unique(everything.groups))
    known = not bool((everything.groups == everything.ids).all())
    if sites == asked.sites:
        name, words = "by_site", "the sites are those of the data itself"
    elif known:
        name, words = "by_group", "patients are dealt to the sites, none to two"
    else:
        name, words = "iid", "images are dealt to the sites at random, for no patients are known"
    if sites and sites != asked.sites:
        words += f" (the data has {plural(sites, 'site')} of its own: --federated {sites} takes these)"
    keys: Tree = {"rounds": ROUNDS, "partition": {"name": name, "count": asked.sites}, "pool": "all"}
    remarks = [words, "real hospitals keep their data: each runs sslmed site init (docs/hospitals.md)"]
    fewest = fewest_patients(everything, name, asked.sites)
    if fewest < FEWEST_AT_SITE:
        raise ValueError(
            f"--federated {asked.sites}: {patients} patients or images leave a site with {fewest}; expected at least "
            f"{FEWEST_AT_SITE} at each, to train, to choose and to test"
        )
    if fewest < MANY_AT_SITE:  # the usual shares of so few would be none
        keys["held_out_groups"] = max(round(fewest / 4), 1)
        keys["validation"] = round(max(0.15, 0.51 / (fewest - keys["held_out_groups"])), 2)
        remarks.append(
            f"a site may have {fewest} patients alone: {keys['held_out_groups']} of each are kept for the test"
        )
    compare = ["random", "local", "pooled"] if has_labels(everything) else []
    return remarks, {**keys, "runtime": "in_process", "compare": compare}


def fewest_patients(everything: Dataset, name: str, sites: int) -> int:
    """How many patients (images, where none are known) the site has that gets fewest."""
    if name != "by_site":
        return len(torch.unique(everything.groups)) // sites
    assert everything.sites is not None
    return min(
        len(torch.unique(everything.groups[everything.sites == site])) for site in torch.unique(everything.sites)
    )
