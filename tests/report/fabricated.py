"""Fabricated run folders for the tests of the report, and what reads its page. Every number here is made up."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

from sslmed_dist import plain_yaml
from sslmed_dist.report.contact_sheets import neighbours_picture, views_picture

SITES = ("site-0", "site-1", "site-10")
LEVEL = {"random": 0.62, "local": 0.74, "federated": 0.81, "pooled": 0.83}


def config(seed: int, **data: Any) -> dict[str, Any]:
    return {
        "run": {"name": "fabricated_mio_v3", "dir": "/home/somebody/runs", "seed": seed},
        "data": {"name": "medmnist", "root": "/home/somebody/pneumoniamnist.npz", **data},
        "views": {"name": "contrastive", "mean": [0.5 + 0.001 * seed]},
        "method": {
            "name": "contrastive",
            "encoder": {"name": "resnet", "depth": 18, "width": 16},
            "head": {"name": "projection"},
            "loss": {"name": "mio_v3", "temperature": 0.2},
        },
        "optim": {"name": "sgd", "lr": 0.06},
        "plan": {"batch_size": 64, "steps_per_epoch": 20, "precision": "float32"},
        "federated": {
            "rounds": 10,
            "local_epochs": 1,
            "strategy": {"name": "fedavg"},
            "partition": {"name": "dirichlet", "alpha": 0.5, "count": 3},
            "compare": ["random", "local", "pooled"],
        },
    }


def row(arm: str, site: str, evaluator: str, metric: str, value: float | None, n: int = 150) -> dict[str, Any]:
    low, high = (None, None) if value is None else (value - 0.04, min(1.0, value + 0.04))
    note = "learning rate 0.1 chosen on val" if evaluator == "linear" else ""
    note = "undefined: all test samples are of class pneumonia" if value is None else note
    return {
        "arm": arm, "site": site, "evaluator": evaluator, "metric": metric, "value": value, "low": low, "high": high,
        "n": n, "groups": n, "note": note,
    }  # fmt: skip


def rows(arm: str, seed: int) -> list[dict[str, Any]]:
    found = []
    for place, site in enumerate(("all", *SITES)):
        n = (430, 210, 160, 60)[place]
        for evaluator, more in (("knn", 0.0), ("linear", 0.03)):
            value = LEVEL[arm] + more + 0.015 * seed - 0.02 * place
            found.append(row(arm, site, evaluator, "accuracy", value, n))
            found.append(row(arm, site, evaluator, "balanced_accuracy", value - 0.03, n))
            found.append(row(arm, site, evaluator, "auc", None if site == "site-10" else value + 0.05, n))
    return found


def fabricate(folder: Path, seed: int = 0, *, arms: tuple[str, ...] = tuple(LEVEL), **data: Any) -> Path:
    """A run folder of a federation of three sites, with invented numbers."""
    (folder / "evaluate").mkdir(parents=True)
    (folder / "config.yaml").write_text(plain_yaml.write(config(seed, **data)))
    environment = {"sslmed_dist": "0.1.0", "python": "3.11.9", "processor": "Invented CPU", "cores": 2, "gpu": None}
    environment |= {"packages": {"torch": "2.12.0", "flwr": "1.41.0", "ray": None}, "date": "2031-02-03"}
    (folder / "environment.json").write_text(json.dumps(environment))
    for arm in arms:
        (folder / "evaluate" / f"{arm}.json").write_text(json.dumps({"rows": rows(arm, seed)}))
    difference = [row("federated - local", site, "knn", "accuracy", 0.05, 150) for site in ("all", *SITES)]
    for item in difference:
        item |= {"difference": True, "low": 0.01, "high": 0.09}
    (folder / "evaluate" / "differences.json").write_text(json.dumps({"rows": difference}))
    lines = []
    for number in range(10):
        for place, site in enumerate(SITES):
            keys = {"time": 0.0, "step": 20 * (number + 1), "round": number, "site": site, "split": "train"}
            values = {"loss": 3 * 0.9**number + 0.1 * place + 0.02 * seed, "effective_rank": 4 + number + place}
            values |= {"embedding_std": 0.5 + 0.04 * number, "uniformity": -1 - 0.2 * number, "alignment": 0.5}
            lines += [json.dumps(keys | {"name": name, "value": value}) for name, value in values.items()]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def add_pictures(folder: Path) -> None:
    images = torch.randint(0, 255, (4, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "views.png").write_bytes(views_picture(images, [images.float(), -images.float()]))
    near = neighbours_picture(images, images[:, None].expand(-1, 3, -1, -1, -1))
    (folder / "pictures" / "neighbours.png").write_bytes(near)
    captions = {"views.png": "Two views <of> each sample", "neighbours.png": "Nearest neighbours"}
    (folder / "pictures" / "captions.json").write_text(json.dumps(captions))


class Tags(HTMLParser):
    """Tags that are open at the end, and every attribute that could fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags
