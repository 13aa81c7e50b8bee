"""The report of fabricated run folders: every number here is made up."""

import json
import re
from pathlib import Path

import pytest

from sslmed_dist import plain_yaml
from sslmed_dist.report import facts, write_report
from sslmed_dist.report.runs import group, read_run
from tests.report.fabricated import SITES, add_pictures, fabricate, parsed, row

pytestmark = pytest.mark.usefixtures("undrawn")


def test_page_and_twin_hold_what_was_run_and_measured(tmp_path: Path) -> None:
    html, markdown = write_report([fabricate(tmp_path / "run")])
    assert (html, markdown) == (tmp_path / "run" / "report.html", tmp_path / "run" / "report.md")
    page, text = html.read_text(), markdown.read_text()
    for document in (page, text):
        for words in ("fabricated_mio_v3", "mio_v3 (temperature 0.2)", "resnet (depth 18, width 16)", "Invented CPU"):
            assert words in document
        assert "2031-02-03" in document and "Python 3.11.9, torch 2.12.0, flwr 1.41.0" in document
        assert "10 rounds of 1 local epochs, fedavg; simulated sites: dirichlet (alpha 0.5, count 3)" in document
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
    assert "| Site-1: federated − local only | **+5.0** [+1.0, +9.0] |" in text


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


def test_a_run_of_real_sites_names_them_and_expects_no_pooled_data(tmp_path: Path) -> None:
    """What the sites measured themselves stands in evaluate/sites.json; nobody can have their data in one place."""
    run = fabricate(tmp_path / "run", arms=("random", "federated"))
    (run / "evaluate" / "differences.json").unlink()
    told = [json.loads((run / "evaluate" / f"{arm}.json").read_text())["rows"] for arm in ("random", "federated")]
    for arm in ("random", "federated"):
        (run / "evaluate" / f"{arm}.json").unlink()
    (run / "evaluate" / "sites.json").write_text(json.dumps({"rows": [row for rows in told for row in rows]}))
    tree = plain_yaml.read(run / "config.yaml")
    tree["federated"]["site_names"] = list(SITES)
    (run / "config.yaml").write_text(plain_yaml.write(tree))
    for file in write_report([run]):
        said = file.read_text()
        assert f"fedavg; sites with data of their own: {', '.join(SITES)}" in said
        assert "; simulated sites" not in said and "pooled data" not in said and "local only" not in said


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
        ("evaluate/local.json", '{"rows": 3}', r"local.json: rows: expected list\[.*\], got 3"),
        ("evaluate/local.json", '{"rows": [], "x": NaN}', "local.json: not valid JSON: NaN is not a number"),
        ("evaluate/similarity.json", '{"bins": []}', "similarity.json: has no alignment, counts, means, n"),
        ("environment.json", '{"packages": [1]}', r"environment.json: packages: expected mapping, got \[1\]"),
        ("config.yaml", "run: 3", "config.yaml: run: expected mapping or null, got 3"),
        ("metrics.jsonl", '{"name": 3, "value": 1}\n', "metrics.jsonl:1: name: expected text, got 3"),
        ("metrics.jsonl", '{"name": "loss", "value": "low"}\n', "metrics.jsonl:1: value: expected float, got 'low'"),
        ("metrics.jsonl", '{"name": "loss", "va\n{"name": "loss", "value": 1}\n', "metrics.jsonl:1: not valid JSON"),
        ("evaluate/local.json", "{}", "local.json: has no rows"),
        ("evaluate/local.json", '{"rows": [{"arm": "local"}]}', r"local.json: rows\[0\]: has no evaluator, high, low"),
        ("metrics.jsonl", '{"step": 1}\n{"name": "loss", "value": 1}\n', "metrics.jsonl:1: has no name, value"),
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


def test_classes_that_lack_samples_stand_beside_the_table(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    remark = "classes only in test, always scored as wrong: <frog> (2 of 5 test samples)"
    lacking = row("encoder", "all", "finetune", "accuracy", 0.5) | {"note": f"no interval: 1 group; {remark}"}
    (run / "evaluate" / "last.json").write_text(json.dumps({"rows": [lacking]}))
    html, markdown = write_report([run])
    page, text = html.read_text(), markdown.read_text()
    assert page.count(remark.replace("<", "&lt;").replace(">", "&gt;")) == 1 and parsed(page).open == []
    assert text.count("classes only in test") == 1 and text.index("### All sites") < text.index("classes only in test")
    assert text.index("classes only in test") < text.index("| arm |")


def test_names_change_no_table_and_steer_no_terminal(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    for old in (run / "evaluate").iterdir():
        old.unlink()
    odd = row("a | b", "north\n# Title", "<script>", "m|n", 0.5) | {"note": "no interval: \x1b[2J | <img>"}
    (run / "evaluate" / "odd.json").write_text(json.dumps({"rows": [odd]}))
    settings = (run / "config.yaml").read_text().replace("fabricated_mio_v3", '"fab | <b>\\e[1m"')
    (run / "config.yaml").write_text(settings)
    page, text = (path.read_text() for path in write_report([run]))
    assert "\x1b" not in page + text and "<script" not in page + text and "<img>" not in page + text
    assert parsed(page).open == [] and "<b>" not in text and "\n# Title" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert r"| a \| b | 0.500 [0.460, 0.540] |" in table


def test_runs_of_one_name_and_seed_are_told_apart(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / column / "seed-0") for column in ("knee", "chest")]
    text = write_report(runs, tmp_path / "both")[1].read_text()
    assert "Runs: knee/seed-0, chest/seed-0" in text and "| federated | 81.0 ± 0.0 |" in text
    with pytest.raises(ValueError, match=r"seed-0: this run is named twice"):
        write_report([runs[0], tmp_path / "knee" / ".." / "knee" / "seed-0"], tmp_path / "twice")


def test_both_documents_have_the_notes_of_differences(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    file = run / "evaluate" / "differences.json"
    tree = json.loads(file.read_text())
    tree["rows"][0]["note"] = "no interval: one group"
    file.write_text(json.dumps(tree))
    for document in write_report([run]):
        assert document.read_text().count("no interval: one group") == 1


def test_what_is_no_run_is_told_from_a_folder_of_runs(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "runs" / "one")
    with pytest.raises(ValueError, match=r"runs: not a run folder: it has no config.yaml and .*; runs in it: one$"):
        write_report([tmp_path / "runs"])
    with pytest.raises(ValueError, match="config.yaml: is a file; expected a run folder"):
        write_report([run / "config.yaml"])
