"""A process under the seccomp profile of the data side's container: what it cannot do any more, and what it still can.

``python -m tests.deploy.confined PROFILE`` loads the profile as a container's start does, by libseccomp, and prints one
JSON object. Exit code 3 where the machine has no libseccomp.
"""

import ctypes
import ctypes.util
import json
import multiprocessing
import socket
import sys
from pathlib import Path
from typing import Any

ACTIONS = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_ERRNO": 0x00050000}
COMPARISONS = {"SCMP_CMP_NE": 1, "SCMP_CMP_MASKED_EQ": 7}


class Argument(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def load(profile: dict[str, Any]) -> None:
    """Let the profile hold for this process and all that it starts."""
    name = ctypes.util.find_library("seccomp")
    if name is None:
        sys.exit(3)
    library = ctypes.CDLL(name, use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(Argument),
    ]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    context = library.seccomp_init(ACTIONS[profile["defaultAction"]])
    for rule in profile["syscalls"]:
        words = [
            Argument(a["index"], COMPARISONS[a["op"]], a["value"], a.get("valueTwo", 0)) for a in rule.get("args", ())
        ]
        for syscall in rule["names"]:
            number = library.seccomp_syscall_resolve_name(syscall.encode())
            assert number != -1, f"{syscall}: no system call of that name"
            array = (Argument * len(words))(*words)
            done = library.seccomp_rule_add_array(
                context, ACTIONS[rule["action"]] | rule["errnoRet"], number, len(words), array
            )
            assert done == 0, f"{syscall}: {done}"
    assert library.seccomp_load(context) == 0


def refused(family: int) -> int:
    """The number of the error with which a socket of a family is refused, 0 where it is not."""
    try:
        socket.socket(family, socket.SOCK_DGRAM).close()
    except OSError as error:
        return error.errno or -1
    return 0


def trained(_: int) -> float:
    """A step of a small convolution: its gradient's norm."""
    import torch

    layer = torch.nn.Conv2d(3, 8, 3)
    layer(torch.ones(4, 3, 16, 16)).square().mean().backward()
    assert layer.weight.grad is not None
    return float(layer.weight.grad.norm())


def main() -> None:
    """Load the profile and try."""
    load(json.loads(Path(sys.argv[1]).read_text()))
    from sslmed_dist.federation import separation

    families = {name: refused(getattr(socket, name)) for name in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET")}
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = libc.unshare(0x10000000)
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        norm = pool.map(trained, [0])[0]
    said = {"refused": families, "unix": refused(socket.AF_UNIX), "reachable": separation.reachable()}
    print(json.dumps({**said, "namespace": namespace, "trained": norm > 0}))


if __name__ == "__main__":
    main()
