"""The work behind a site's door: read the data, train a round, in a process of its own with limits.

The process gets one message of ``payload`` that the door has checked, and gives one back. It reads the site's file
itself, so no path passes between the two. When it ends in any way without an answer, the door has a failure to record,
and the door itself lives on.
"""

import multiprocessing
import os
import resource
import signal
import threading
import traceback
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import config
from sslmed_dist.atomic_files import appending
from sslmed_dist.config import Config
from sslmed_dist.federation import payload, site_figures, site_file
from sslmed_dist.federation.ledger import canonical
from sslmed_dist.federation.local_round import first_sent, local_update
from sslmed_dist.federation.messages import Node
from sslmed_dist.federation.policy import Refusal, opened, request
from sslmed_dist.federation.shared import Arrays, model_digest
from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.federation.sites import Site, own_site
from sslmed_dist.log_files import keep_small
from sslmed_dist.printable import say

STATISTICS = (".running_mean", ".running_var")  # endings of the tensors that hold means and variances over images


class Failure(RuntimeError):
    """The work was begun and gave no answer. Its line is for the site's own ledger and says no more than a class."""


def settings_at(site: SiteFile, settings: Config) -> Config:
    """The settings with what only the site decides: its paths, its device, its threads at most."""
    node = Node(site=site.site, data_root=site.data, data_cache=site.data_cache, data_list=site.data_list)
    threads = min(settings.run.threads or 1, site.resources.threads)
    run = {"device": site.resources.device, "threads": threads}
    return config.replace(settings, data=node.data(settings.data), run=run)


def folder_of(site: SiteFile, configuration: str) -> Path:
    """Where the site keeps what belongs to one configuration."""
    return Path(site.state) / "runs" / configuration


def perform(site: SiteFile, settings: Config, configuration: str, message: payload.Message) -> tuple[int, bytes]:
    """The answer to a message that passed the door, as (number of examinations, message of ``payload`` without what
    only the door knows). ``Refusal`` for a first model that is not the one that the seed gives, and for data that are
    fewer than the rules ask for. Any other error is a failure."""
    chosen = settings_at(site, settings)
    torch.set_num_threads(chosen.run.threads or 1)
    if message.kind == "train" and message.fields["round"] == 0:
        require_first_model(site, chosen, message.tensors)
    own = own_site(chosen, site.site)
    examinations = examinations_of(own)
    if examinations < site.policy.least.examinations:
        raise Refusal("this site has fewer examinations than its own rules ask for")
    samples = len(own.pretrain)
    if message.kind == "hello":
        fields: dict[str, Any] = {"samples": samples, "channels": own.dataset.channels}
        return examinations, canonical(fields)
    number, folder = message.fields["round"], folder_of(site, configuration) / "own"
    if message.kind == "evaluate":
        return examinations, measured(site, chosen, own, message, folder)
    shared, means = local_update(chosen, site.site, own.pretrain, number, message.tensors, folder)
    finite = {name: float(value) for name, value in means.items() if payload.SCALAR.fullmatch(name)}
    fields = {"run": "0" * 64, "round": number, "sequence": 0, "site": site.site, "samples": samples}
    fields |= {"scalars": finite, "model": model_digest(message.tensors)}
    return examinations, payload.pack("update", fields, shared)


def measured(site: SiteFile, settings: Config, own: Site, message: payload.Message, folder: Path) -> bytes:
    """The answer to "evaluate". ``Refusal`` for a held-out part of fewer patients than the rules ask for."""
    rules, (patients, rarest) = site.policy.figures, site_figures.fewest(own)
    if patients < rules.patients or rarest < rules.of_each_class:
        raise Refusal("this site's held-out part has fewer patients, in all or of a class, than its own rules ask for")
    figures, scalars = site_figures.evaluate(settings, own, message.tensors, folder)
    fields = {"run": "0" * 64, "round": message.fields["round"], "sequence": 0, "site": site.site, "scalars": scalars}
    fields |= {"figures": [figure.to_list() for figure in figures], "model": model_digest(message.tensors)}
    return payload.pack("figures", fields)


def seconds_of(site: SiteFile, data: bytes) -> float:
    """How long the work for this request may take. An evaluation that trains an encoder on the site's data alone does
    as many rounds' work."""
    message = payload.unpack(data)
    if message.kind != "evaluate":
        return site.resources.seconds
    settings = request(opened(message.fields["config"]), site.policy).settings
    return site.resources.seconds * site_figures.rounds_of_work(settings)


def examinations_of(own: Site) -> int:
    """How many patients, or examinations where patients are not known, a site pretrains on."""
    return len(set(own.pretrain.groups.tolist()))


def require_first_model(site: SiteFile, settings: Config, tensors: Mapping[str, Tensor]) -> None:
    """``Refusal`` unless the first model is the one that this site draws itself from the run's seed, bit for bit, or
    one that its rules name."""
    digest = model_digest(tensors)
    if digest not in (*site.policy.model.first_weights, model_digest(first_sent(settings))):
        raise Refusal("the first model is not the one that this run's seed gives, nor one that this site's rules name")


def withheld(sent: Mapping[str, Tensor], update: Arrays, examinations: int, site: SiteFile) -> tuple[Arrays, list[str]]:
    """(the update, names of its tensors that this site keeps to itself). Below ``policy.least.statistics``
    examinations means and variances over images stay: what the server sent goes back in their place."""
    if examinations >= site.policy.least.statistics:
        return update, []
    names = [name for name in update if name.endswith(STATISTICS)]
    return {**update, **{name: sent[name] for name in names}}, names


def forking() -> Any:
    """What starts the processes of rounds: one process with all modules read, which forks (``multiprocessing``)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def warm(temporary: Path) -> None:
    """Start that process now. The first request would wait for it otherwise, on a busy machine for longer than the
    server waits. Its socket is in ``temporary``, which is the caller's to remove: left alone, ``multiprocessing`` makes
    a folder that a kill leaves behind, and complains at its end where that is gone."""
    multiprocessing.current_process()._config["tempdir"] = str(temporary)  # type: ignore[attr-defined]
    forking()
    forkserver.ensure_running()


def in_child(site_path: Path, site: SiteFile, configuration: str, message: bytes) -> tuple[int, bytes]:
    """``perform`` in a process of its own, which is ended after ``seconds_of``. ``Refusal`` as of ``perform``,
    ``Failure`` for anything else that goes wrong in it."""
    context = forking()
    ours, theirs = context.Pipe()
    child = context.Process(target=serve_one, args=(theirs, str(site_path), configuration), daemon=True)
    child.start()
    theirs.close()
    try:
        ours.send_bytes(message)
        if not ours.poll(seconds_of(site, message)):
            raise Failure("the work took longer than resources.seconds")
        said = ours.recv_bytes(site.resources.message_bytes + (1 << 20))
    except (EOFError, OSError):
        child.join(10)
        raise Failure(f"the work's process ended without an answer (exit code {child.exitcode})") from None
    finally:
        ours.close()
        child.kill()
        child.join()
        child.close()
    word, _, rest = said.partition(b"\n")
    if word == b"refusal":
        raise Refusal(rest.decode())
    if word == b"failure":
        raise Failure(rest.decode())
    return int(word), rest


def serve_one(connection: Connection, site_path: str, configuration: str) -> None:
    """The child: one message in, one answer out. The text of an error goes to the site's own log alone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the door, which lets a round in progress end well
        signal.signal(number, signal.SIG_IGN)
    try:
        data = connection.recv_bytes()
    except EOFError:  # the door has ended before it had work
        return
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    site = site_file.read(Path(site_path))
    limit = int(site.resources.memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no image of the memory on the disk
    try:
        message = payload.unpack(data)
        asked = request(opened(message.fields["config"]), site.policy)
        examinations, answer = perform(site, asked.settings, configuration, message)
        connection.send_bytes(str(examinations).encode() + b"\n" + answer)
    except Refusal as refusal:
        connection.send_bytes(b"refusal\n" + str(refusal).encode())
    except BaseException as error:
        write_down(error, errors_log(site))
        connection.send_bytes(b"failure\n" + type(error).__name__.encode())


def errors_log(site: SiteFile) -> Path:
    """Where the texts of errors go; they never leave."""
    return Path(site.state) / "errors.log"


def write_down(error: BaseException, path: Path) -> None:
    """The text of an error to the site's own log. Where that cannot be written, most likely for the very same reason,
    one line on standard error, which is this site's, too."""
    try:
        keep_small(path)
        with appending(path) as log:
            log.write("".join(traceback.format_exception(error)) + "\n")
    except OSError as refused:
        text = " ".join(str(error).split())
        say(f"{path}: {refused.strerror}; the work failed: {type(error).__name__}: {text}")


def end_with(connection: Connection) -> None:
    """End this process when the door is gone: nobody would take its answer, and it holds the site's data."""
    connection.poll(None)
    os._exit(1)
