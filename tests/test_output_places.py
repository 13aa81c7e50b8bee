"""Where a verb writes: ``--out`` everywhere, or a word without option; one clear line for what is no place."""

import argparse
from pathlib import Path

import pytest

from sslmed_dist import cli
from sslmed_dist.cli_parser import parser
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import job
from tests import tiny
from tests.report.fabricated import fabricate

VERBS = {
    "export RUN": {},
    "data phantom shapes": {"kind": "shapes"},
    "data pack image_folder ROOT": {"name": "image_folder", "root": "ROOT"},
    "data prepare chaos SRC": {"kind": "chaos", "source": Path("SRC")},
}


@pytest.mark.parametrize("verb", VERBS)
def test_out_is_an_option_or_a_word(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    takes_overrides = verb.startswith(("data phantom", "data pack"))
    more = ["size=3", "a=4"] if takes_overrides else []
    for words in (["--out", "x/y"], ["x/y"]):
        arguments = cli.parse([*verb.split(), *words, *more])
        assert arguments.out == Path("x/y") and getattr(arguments, "overrides", []) == more
        assert {key: getattr(arguments, key) for key in VERBS[verb]} == VERBS[verb]
    if takes_overrides:
        arguments = cli.parse([*verb.split(), *more, "--out", "x/y"])
        assert arguments.out == Path("x/y") and arguments.overrides == more
    for words, line in (
        ([], "says not where to write; give --out OUT"),
        (["x", "--out", "y"], "where to write stands on the command line twice: y, x"),
        (["--out", ""], "is empty; expected a path"),
        ([""], "is empty; expected a path"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.parse([*verb.split(), *words])
        assert line in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["evaluate", "report", "embed RUN", "data check", "train", "segment --model"])
def test_an_empty_path_is_no_folder(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.parse([*verb.split(), ""])
    assert "is empty; expected a path" in capsys.readouterr().err


def test_an_export_and_a_report_say_what_is_no_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")
    run = job.train(tiny.settings(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1})).settings.folder
    page = fabricate(tmp_path / "page")
    (tmp_path / "notes").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    folder, under = "is a folder; --out expects the name of the files in it", "notes: is a file; expected a folder"
    for words, line in (
        (["export", str(run), "--out", "."], folder),
        (["export", str(run), "--out", ".."], folder),
        (["export", str(run), str(run)], folder),
        (["export", str(run), "--out", "notes/encoder"], under),
        (["report", str(page), "--out", "notes"], "notes: is a file; --out expects a folder, or a page"),
        (["report", str(page), "--out", "notes/page.html"], under),
        (["embed", str(run), str(tmp_path), "--out", "notes/f.npz"], under),
        (["embed", str(run), "notes"], "notes: is a file; expected a folder of images"),
        (
            ["export", str(run), "--out", "encoder.onnx"],
            "onnx: this format writes .safetensors, .json, .md",
        ),
        (["report", str(page), "--out", "page.pdf"], "page.pdf: a report is written as .html"),
        (
            ["evaluate", str(run.parent)],
            "runs: neither a checkpoint file nor a run folder with checkpoints; runs in it: tiny",
        ),
    ):
        capsys.readouterr()
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert line in said and len(said.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert list(Metrics(run / "metrics.jsonl").read())


def test_every_argument_of_every_verb_says_what_it_is() -> None:
    """``--help`` is read before the documentation; a name alone explains nothing."""
    verbs: list[tuple[str, argparse.ArgumentParser]] = [("sslmed", parser())]
    silent = []
    for name, verb in verbs:  # grows by the verbs below
        for action in verb._actions:
            if isinstance(action, argparse._SubParsersAction):
                verbs += [(f"{name} {word}", below) for word, below in action.choices.items()]
            elif not action.help:
                silent.append(f"{name}: {action.metavar or action.dest}")
    assert len(verbs) > 16 and silent == []
