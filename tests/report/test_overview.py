"""``sslmed report --all``: one page over the runs of a folder. Every number here is made up."""

import shutil
from pathlib import Path

import pytest

from sslmed_dist import cli, plain_yaml
from sslmed_dist.report import write_report
from sslmed_dist.report.overview import write_overview
from tests.report.browser import AXE, DESK, PHONE, asked, needs_axe, needs_chromium
from tests.report.fabricated import config, fabricate, parsed

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one run, another run that starts from the first, a folder that cannot be read."""
    folder = tmp_path_factory.mktemp("all") / "runs"
    for seed in (0, 1):
        fabricate(folder / f"seed-{seed}", seed)
    other = fabricate(folder / "deeper" / "later", 0, as_rgb=True)
    tree = config(0, as_rgb=True)
    tree["run"]["start_from"] = f"{folder.name}/seed-0"
    (other / "config.yaml").write_text(plain_yaml.write(tree))
    (folder / "torn").mkdir()
    (folder / "torn" / "config.yaml").write_text("run: {name: torn}\n")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of ``made`` for one test."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


def test_the_page_has_every_run_its_figures_floors_and_relations(folder: Path) -> None:
    write_report([folder / "seed-0"])
    page = write_overview(folder)
    assert page == folder / "runs.html"
    text = page.read_text()
    assert parsed(text).open == []
    rows = text.split("<tr id='run-")[1:]
    assert [row.split("data-key='")[1].split("'")[0] for row in rows] == ["deeper/later", "seed-0", "seed-1"]
    assert "starts from: <a href='#run-1'>seed-0</a>" in rows[0] and "other seeds" not in rows[0]
    assert "<a href='seed-0/report.html'>seed-0</a>" in rows[1] and "other seeds: <a href='#run-2'>" in rows[1]
    assert "<td data-key='0.81'>81.0<small>[77.0, 85.0]</small><small>random encoder 62.0</small></td>" in rows[1]
    assert "arms: random encoder, local only, federated, pooled data" in rows[1]
    assert "loss of seed-0, from 3 to 1.162" in rows[1]
    assert "<b>torn</b>: not a run folder: it has no metrics.jsonl or evaluate/*.json" in text
    assert "Research use only, not a medical device" in text
    assert "/home/somebody" not in text and "http" not in text and "base64" not in text


def test_a_run_without_figures_says_not_run(folder: Path) -> None:
    shutil.rmtree(folder / "seed-1" / "evaluate")
    row = write_overview(folder).read_text().split("<tr id='run-")[3]
    assert row.count("<td class='absent' data-key=''>not run</td>") == 3


def test_what_is_said_of_a_folder_without_runs_and_of_a_place_that_stays(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torn: holds no run .*; torn: not a run folder: it has no metrics"):
        write_overview(folder / "torn")
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        write_overview(tmp_path / "nowhere")
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(ValueError, match="is not what this command writes there"):
        write_overview(folder, tmp_path / "mine.html", force=True)
    first = write_overview(folder, tmp_path / "out")
    assert first == tmp_path / "out" / "runs.html"
    with pytest.raises(ValueError, match="exists already"):
        write_overview(folder, tmp_path / "out")
    write_overview(folder), write_overview(folder)  # at its own place it is written anew


@pytest.mark.parametrize(
    "words, said",
    [
        (["--all", "{}", "{}/seed-0"], "stands alone"),
        ([], "name at least one run"),
        (["--all", "{}", "--pictures"], "alone"),
    ],
)
def test_the_command_line(folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", *(word.format(folder) for word in words)]) == 2
    assert said in capsys.readouterr().err
    assert cli.main(["report", "--all", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "runs.html")


PRESS = "document.querySelectorAll('#runs thead button')[{}].click();"
ORDER = (
    "return [...document.querySelectorAll('#runs tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].dataset.key);"
)


@needs_chromium
@pytest.mark.slow
def test_the_page_sorts_and_filters(folder: Path) -> None:
    shutil.rmtree(folder / "deeper" / "later" / "evaluate")
    page = write_overview(folder)
    assert asked(page, PRESS.format(0) + PRESS.format(0) + ORDER) == ["seed-1", "seed-0", "deeper/later"]
    # by a figure: what was not measured comes last, whichever way
    assert asked(page, PRESS.format(4) + ORDER) == ["seed-0", "seed-1", "deeper/later"]
    assert asked(page, PRESS.format(4) + PRESS.format(4) + ORDER) == ["seed-1", "seed-0", "deeper/later"]
    typed = "const field = document.getElementById('filter'); field.value = 'SEED-1 contrastive';"
    typed += "field.dispatchEvent(new Event('input'));"
    assert asked(page, typed + "const said = document.getElementById('count').textContent;" + ORDER) == [
        "seed-0",
        "seed-1",
    ]  # seed-0 names seed-1 as its other seed
    assert asked(page, typed + "return document.getElementById('count').textContent") == "2 of 3 runs"
    sorted_by = (
        "return document.querySelector('th[aria-sort]').textContent + document.querySelectorAll('[aria-sort]').length"
    )
    assert asked(page, PRESS.format(1) + PRESS.format(0) + sorted_by) == "run1"


WIDER = """
const page = document.documentElement, regions = [...document.querySelectorAll('.scroll')];
return {page: page.scrollWidth - page.clientWidth, tables: regions.map(r => r.scrollWidth - r.clientWidth)};
"""


@needs_chromium
@pytest.mark.slow
def test_tables_fit_a_desk_and_no_page_is_wider_than_a_phone(folder: Path) -> None:
    pages = [write_overview(folder), write_report([folder / "seed-0", folder / "seed-1"])[0]]
    for page in pages:
        desk = asked(page, WIDER, width=DESK)
        assert desk["page"] <= 0 and desk["tables"] and max(desk["tables"]) <= 0, (page.name, desk)
        assert asked(page, WIDER, width=PHONE)["page"] <= 0, page.name


FOUND = (
    "const found = await axe.run(); return found.violations.map(v => [v.impact, v.id, v.nodes[0].html.slice(0, 200)]);"
)


@needs_axe
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_keeps_a_keyboard_or_a_screen_reader_out(folder: Path, dark: bool) -> None:
    for page in (write_report([folder / "seed-0", folder / "seed-1"])[0], write_overview(folder)):
        for width in (DESK, PHONE):
            assert asked(page, FOUND, width=width, dark=dark, before=AXE.read_text()) == [], (page.name, width)


@needs_axe
@pytest.mark.slow
def test_axe_finds_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><html><head></head><body style='background:#fff'>"
        "<img src='x.png'><p style='color:#eee'>some words</p></body></html>"
    )
    assert {"image-alt", "color-contrast", "html-has-lang"} <= {
        name for _, name, _ in asked(page, FOUND, before=AXE.read_text())
    }
