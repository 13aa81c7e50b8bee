"""What Ray says of itself is in ``logs/ray.log``; what the program says, and what a person waits for, is printed."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sslmed_dist import config
from sslmed_dist.drivers import ray_log
from sslmed_dist.drivers.ray_train import began_since
from sslmed_dist.endings import Stopped
from sslmed_dist.printable import say
from tests import tiny
from tests.drivers.ray_nodes import environment, short_folder

# Lines of real runs on Ray 2.55.1, and what is to be seen of each.
LINES = {
    "(RayTrainWorker pid=17566) demo-ray  step 2/4  loss 1.5718  33 images/s  8 s left": "demo-ray  step 2/4  loss 1.5718  33 images/s  8 s left",  # noqa: E501
    "(RayTrainWorker pid=17566, ip=10.0.0.2) note: bf16": "note: bf16",
    "(RayTrainWorker pid=1) Traceback (most recent call last):": "Traceback (most recent call last):",
    "(outcome_of pid=12) step 3": "step 3",
    "(TrainController pid=16742) Started training worker group of size 2: ": "ray: 2 workers have started",
    "(TrainController pid=16742)   Error count: 1 (max allowed: 3)": "ray: workers failed, failure 1 (max allowed: 3); logs/ray.log says why",  # noqa: E501
    "(TrainController pid=16742) Traceback (most recent call last):": None,
    "(TrainController pid=16742) - (ip=10.0.0.2, pid=17566) world_rank=0, local_rank=0, node_rank=0": None,
    "(RayTrainWorker pid=17566) Setting up process group for: env:// [rank=0, world_size=2]": None,
    "(RayTrainWorker pid=17566) Reporting training result 1: TrainingReport(checkpoint=None)": None,
    "(RayTrainWorker pid=17566) [2026-11-26 13:06:12,250 W 4234 4234] rpc_client.h:153: Failed": None,
    "(PlacementGroupCleaner pid=17174) ConnectionError: Found multiple active Ray instances": None,
    "2026-11-26 13:12:53,441\tINFO worker.py:2012 -- Started a local Ray instance.": None,
    "(autoscaler +5s) Adding 1 node(s) of type gpu.": "(autoscaler +5s) Adding 1 node(s) of type gpu.",
    "sslmed train: plan.epochs: expected an integer": "sslmed train: plan.epochs: expected an integer",
    "2026-11-26 is a date": "2026-11-26 is a date",
    "": "",
}


def run_folder(folder: Path) -> config.Config:
    """The settings of a Ray run whose folder an earlier start has left."""
    settings = config.replace(tiny.settings(folder), driver="ray", ray={"num_workers": 2})
    settings.folder.mkdir(parents=True)
    (settings.folder / "ray.json").write_text("{}")
    os.utime(settings.folder / "ray.json", (1, 1))
    return settings


@pytest.mark.parametrize("line", LINES)
def test_each_line_goes_where_it_belongs(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = run_folder(tmp_path)
    with ray_log.apart(settings, began_since(settings.folder)):
        (settings.folder / "ray.json").write_text('{"state": "working"}')
        capsys.readouterr()
        print(line, file=sys.stderr)
        shown = capsys.readouterr().err
    log, seen = settings.folder / "logs" / "ray.log", LINES[line]
    kept = seen is None or seen.startswith("ray: ")
    told = f"note: what Ray says of itself goes to {log}\n" if kept else ""
    assert shown == told + ("" if seen is None else f"{seen}\n")
    assert (log.read_text() == f"{line}\n") if kept else not log.exists()


def test_a_record_of_several_lines_is_one_and_threads_do_not_mix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = run_folder(tmp_path)
    logger, handler = logging.getLogger("tests.ray"), logging.StreamHandler
    with ray_log.apart(settings, began_since(settings.folder)):
        (settings.folder / "ray.json").write_text("{}")
        own = handler(sys.stderr)
        own.setFormatter(logging.Formatter("%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"))
        logger.addHandler(own)
        logger.error("Failed to start the dashboard\nThe last 20 lines of it:\nTraceback (most recent call last):")
        logger.removeHandler(own)
        sys.stderr.write("half a line of ours")
        other = threading.Thread(target=lambda: print("(TrainController pid=1) noise", file=sys.stderr))
        other.start()
        other.join()
        sys.stderr.write(", and its end\n")
    assert capsys.readouterr().err.splitlines()[1:] == ["half a line of ours, and its end"]
    said = (settings.folder / "logs" / "ray.log").read_text().splitlines()
    assert len(said) == 4 and said[2] == "Traceback (most recent call last):" and said[3].endswith("noise")


@pytest.mark.parametrize(
    ("error", "printed"), [(ValueError("no"), False), (Stopped("no"), False), (RuntimeError("no"), True)]
)
def test_before_the_workers_work_nothing_is_written(
    error: Exception, printed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder may be another run's. A failure that is no mistake of the user's shows what Ray said of it."""
    settings = run_folder(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(type(error)), ray_log.apart(settings, began_since(settings.folder)):
        print("(raylet pid=3) the reason", file=sys.stderr)
        say("ours")
        raise error
    assert capsys.readouterr().err.splitlines() == ["ours", *(["(raylet pid=3) the reason"] if printed else [])]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_log_of_a_failed_start_does_not_keep_the_folder_for_its_run(tmp_path: Path) -> None:
    from sslmed_dist.run_folder import RunFolder

    settings = tiny.settings(tmp_path)
    (settings.folder / "logs").mkdir(parents=True)
    assert RunFolder(settings.folder, settings).only_begun()


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_real_run_prints_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    settings = tiny.settings(tmp_path, driver="ray", ray={"num_workers": 2})
    (tmp_path / "tiny.yaml").write_text(config.dump(settings))
    command = [sys.executable, "-m", "sslmed_dist.cli", "train", "tiny.yaml"]
    with short_folder() as rays:
        env = environment(RAY_TMPDIR=str(rays))
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{settings.folder}\n"
    assert "ray: 2 workers have started" in done.stderr and "  step " in done.stderr
    assert "pid=" not in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 20
    assert "Started training worker group of size 2" in (settings.folder / "logs" / "ray.log").read_text()
