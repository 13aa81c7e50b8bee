"""The report of fabricated run folders: every number here is made up."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sslmed_dist.report import facts, plots, write_report
from sslmed_dist.report.contact_sheets import neighbours_picture, views_picture
from sslmed_dist.report.runs import PNG, group, read_run

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
    (folder / "config.yaml").write_text(yaml.safe_dump(config(seed, **data)))
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


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds; the plots have their own tests."""
    monkeypatch.setattr(plots, "render", lambda draw, size, theme: PNG)


class Tags(HTMLParser):
    """Tags that are open at the end, and every attribute that could fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_page_and_twin_hold_what_was_run_and_measured(tmp_path: Path) -> None:
    html, markdown = write_report([fabricate(tmp_path / "run")])
    assert (html, markdown) == (tmp_path / "run" / "report.html", tmp_path / "run" / "report.md")
    page, text = html.read_text(), markdown.read_text()
    for document in (page, text):
        for words in ("fabricated_mio_v3", "mio_v3 (temperature 0.2)", "resnet (depth 18, width 16)", "Invented CPU"):
            assert words in document
        assert "2031-02-03" in document and "Python 3.11.9, torch 2.12.0, flwr 1.41.0" in document
        assert "10 rounds of 1 local epochs, fedavg; dirichlet (alpha 0.5, count 3)" in document
        assert "Research use only, not a medical device" in document
        assert "Phantom" not in document and "PHANTOM" not in document
        assert "undefined: all test samples are of class pneumonia" in document
        assert "learning rate 0.1 chosen on val" in document
        assert "descriptive: few patients (60 test samples)" in document
        assert "/home/somebody" not in document
    assert "| federated | 81.0 [77.0, 85.0] | 78.0 [74.0, 82.0] | 0.860 [0.820, 0.900] |" in text
    assert text.index("### Site-1\n") < text.index("### Site-10\n")
    # Mean of 79, 77 and 75 %; each site counts once.
    assert "| federated | 77.0 |" in text[text.index("### Mean over sites") :]
    assert "| Site-1: federated − local only | +5.0 [+1.0, +9.0] |" in text


def test_page_is_one_closed_document_that_fetches_nothing(tmp_path: Path) -> None:
    page = write_report([fabricate(tmp_path / "run")])[0].read_text()
    tags = parsed(page)
    assert tags.open == []
    assert tags.links and all(link.startswith(("data:image/png;base64,", "#")) for link in tags.links)
    assert "<script" not in page and "http" not in re.sub(r"base64,[^'\"]*", "", page)
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_seeds_become_mean_and_deviation_with_single_runs_kept(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / f"seed-{seed}", seed) for seed in range(3)]
    html, markdown = write_report(runs)
    assert html.parent == tmp_path
    page, text = html.read_text(), markdown.read_text()
    assert "Runs: seed 0, seed 1, seed 2" in text
    assert "| federated | 82.5 ± 1.5 |" in text
    assert "<summary>Single runs</summary>" in page and "84.0 [80.0, 88.0]" in page


def test_runs_of_another_configuration_stand_apart(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / "one"), fabricate(tmp_path / "two", as_rgb=True)]
    text = write_report(runs, tmp_path / "both")[1].read_text()
    assert text.count("## fabricated_mio_v3\n") == 2 and "±" not in text
    assert (tmp_path / "both" / "report.html").is_file()


def test_phantom_data_are_named_as_such(tmp_path: Path) -> None:
    html, markdown = write_report([fabricate(tmp_path / "run", name="phantom_abdomen")])
    assert "<strong>Phantom data.</strong>" in html.read_text() and "PHANTOM DATA" in markdown.read_text()
    rooted = fabricate(tmp_path / "other", root="/data/phantom-abdomen")
    assert "Phantom data." in write_report([rooted])[0].read_text()


def test_what_was_not_run_is_said(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", arms=("local", "federated"))
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    html, markdown = write_report([run])
    assert "| random encoder | not run | not run |" in markdown.read_text()
    assert "Training curves: not run." in markdown.read_text()
    assert "not recorded (no environment.json)" in html.read_text()
    assert "Not run: loss, embedding_std, effective_rank, uniformity, alignment" in html.read_text()
    assert "Pictures: not run." in html.read_text()
    bare = fabricate(tmp_path / "bare")
    for path in (bare / "evaluate").iterdir():
        path.unlink()
    assert "Evaluation: not run." in write_report([bare])[0].read_text()


def test_pictures_are_embedded_only_when_the_site_asks(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    add_pictures(run)
    without = write_report([run])[0].read_text()
    assert "2 left out: they hold image pixels" in without and "Two views" not in without
    page = write_report([run], pictures=True)[0].read_text()
    assert "This page holds image pixels." in page and parsed(page).open == []
    assert page.index("Two views &lt;of&gt; each sample") < page.index("Nearest neighbours")
    (run / "pictures" / "views.png").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="views.png: not a PNG file"):
        write_report([run], pictures=True)


def test_a_report_repeats_bit_for_bit(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    first = [path.read_bytes() for path in write_report([run])]
    assert [path.read_bytes() for path in write_report([run])] == first


def test_torn_and_infinite_metrics_are_left_out_and_said(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "site": "site-0", "name": "loss", "value": NaN}\n{"step": 2, "na')
    page = write_report([run])[0].read_text()
    assert "metrics.jsonl: the last line is torn and was left out" in page
    assert "metrics.jsonl: 1 values that are not finite were left out" in page


def test_metrics_of_site_and_arm_folders_are_drawn(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().replace(', "site": "site-1"', "")
    for place in ("arms/local-site-1", "arms/pooled", "sites/north"):
        (run / place).mkdir(parents=True)
        (run / place / "metrics.jsonl").write_text(lines)
    page = write_report([run])[0].read_text()
    assert "Curves: local only" in page and "Curves: pooled data" in page
    drawn = facts.curve_lines(group([read_run(run)])[0], "loss", "local")[0]
    assert [line.label for line in drawn] == ["site-0", "site-1", "site-10"]
    (run / "metrics.jsonl").unlink()
    assert "north" in [line.label for line in facts.curve_lines(group([read_run(run)])[0], "loss")[0]]


def broken(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", "a: [", "config.yaml: not valid YAML"),
        ("config.yaml", "3", "config.yaml: expected the sections of a configuration, got int"),
        ("environment.json", "{", "environment.json: not valid JSON"),
        ("evaluate/local.json", "{}", "local.json: expected an object with a list 'rows'"),
        ("evaluate/local.json", '{"rows": [{"arm": "local"}]}', r"local.json: rows\[0\] has no evaluator, high, low"),
        ("metrics.jsonl", '{"step": 1}\n{"name": "loss", "value": 1}\n', "metrics.jsonl:1: not a line of metrics"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    run = fabricate(tmp_path / "run")
    broken(run, name, text)
    with pytest.raises(ValueError, match=message):
        write_report([run])
    assert not (run / "report.html").exists()


def test_folders_that_are_no_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name at least one run folder"):
        write_report([])
    with pytest.raises(ValueError, match="absent: no such run folder"):
        write_report([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    message = "empty: not a run folder: it has no config.yaml and no metrics.jsonl or evaluate/"
    with pytest.raises(ValueError, match=message):
        write_report([tmp_path / "empty"])
    run = fabricate(tmp_path / "run")
    with pytest.raises(ValueError, match="the runs lie in 2 different folders"):
        write_report([run, fabricate(tmp_path / "deeper" / "run", 1)])


def test_files_that_measure_the_same_arm_stand_side_by_side(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    local = json.loads((run / "evaluate" / "local.json").read_text())["rows"]
    (run / "evaluate" / "zebra.json").write_text(json.dumps({"rows": local}))
    text = write_report([run])[1].read_text()
    assert "(zebra)" not in text  # the same numbers again
    (run / "evaluate" / "zebra.json").write_text(json.dumps({"rows": [row("local", "all", "knn", "accuracy", 0.5)]}))
    text = write_report([run])[1].read_text()
    assert "| local (zebra) | 50.0 [46.0, 54.0] |" in text and "| local only | 74.0 " in text
    (run / "evaluate" / "local.json").write_text(json.dumps({"rows": [*local, local[0]]}))
    with pytest.raises(ValueError, match="evaluate/local.json holds all / local / knn / accuracy twice"):
        write_report([run])


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    (run / "evaluate" / "odd.json").write_text(json.dumps({"rows": [row("<b>x", "<i>s", "<u>e", "<s>m", 0.5)]}))
    page = write_report([run])[0].read_text()
    assert parsed(page).open == [] and not re.search(r"<(b>x|i>s|u>e|s>m)", page, re.IGNORECASE)
