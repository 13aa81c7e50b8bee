"""Long metrics: read once and line by line, kept as numbers, grouped by what they are of."""

import json
import tracemalloc
from pathlib import Path

from sslmed_dist.report import facts
from sslmed_dist.report.runs import group, read_run
from sslmed_dist.report.series import Key, read_series
from tests.report.fabricated import fabricate


def test_series_hold_the_numbers_and_no_rows(tmp_path: Path) -> None:
    file, names, steps = tmp_path / "metrics.jsonl", ("loss", "lr", "effective_rank"), 4000
    with file.open("w") as lines:
        for step in range(steps):
            for name in names:
                row = {
                    "time": 1.5,
                    "step": step,
                    "epoch": step // 9,
                    "split": "train",
                    "name": name,
                    "value": 0.5 * step,
                }
                lines.write(json.dumps(row) + "\n")
    tracemalloc.start()
    series = read_series([file], [])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6, "12,000 rows as dictionaries are more than 4 MB"
    assert [key.name for key in series] == list(names) and set(series) == {Key(n, None, None, None) for n in names}
    for one in series.values():
        assert one.values.tolist() == [0.5 * step for step in range(steps)]
        assert set(one.axes) == {"step", "epoch"} and one.axes["step"].tolist() == list(range(steps))


def test_sites_and_arms_follow_from_folders_and_the_last_value_from_the_order(tmp_path: Path) -> None:
    run = fabricate(tmp_path)
    places = {"sites/north": (None, "north"), "arms/pooled": ("pooled", None), "arms/local-b": ("local", "b")}
    for number, folder in enumerate(places):
        (run / folder).mkdir(parents=True)
        row = {"step": 7, "split": "test", "name": "loss", "value": 40.0 + number}
        more = row | {"step": 5, "value": 9.0} | ({"site": "other"} if folder == "sites/north" else {})
        (run / folder / "metrics.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(more)}\n")
    experiment = group([read_run(run)])[0]
    found = experiment.runs[0].metrics
    for number, (arm, site) in enumerate(places.values()):
        assert found[Key("loss", arm, site, "test")].values[0] == 40.0 + number
    assert found[Key("loss", "local", "b", "test")].values.tolist() == [42.0, 9.0]
    assert dict(facts.last_values(experiment))["loss"] == "9", "of the file that is read last, whatever the site"
    assert facts.other_arms(experiment) == ["local", "pooled"]
    (curve,), _ = facts.curve_lines(experiment, "loss", "local")
    assert curve.label == "b, test" and curve.runs == (([5.0, 7.0], [9.0, 42.0]),), "in the order of x"
