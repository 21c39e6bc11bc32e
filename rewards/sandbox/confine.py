"""Confining this process for good, before it runs what it does not trust. Linux only; imported by the children alone.

Four layers, outermost first; `confine` says which of them are in force:
- limits of the kernel (setrlimit): processor time, address space, size of a file, number of open files and processes;
- namespaces of its own for users and network, so that there is no network but a loopback that is down;
- Landlock: of the file system it can read the interpreter's library, and write nothing;
- seccomp: no socket, no other process, no signal to one.
An audit hook refuses the same things inside the interpreter. It gives the clearer error, and where the kernel has not
all of the others it is the last line: enough for a policy that tries things, not for one that corrupts memory.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any

from . import files, syscalls

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_NUM_OPEN_FILES = 64
_NUM_THREADS = 64

_FORBIDDEN = (
    "ctypes.",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.kill",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.",
    "signal.pthread_kill",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostby",
    "socket.sendmsg",
    "socket.sendto",
    "subprocess.",
)
"""How the events begin that the audit hook refuses."""
# fmt: off
_CHANGES = frozenset((
    "os.chflags", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr", "os.rename", "os.rmdir",
    "os.setxattr", "os.symlink", "os.truncate", "os.utime", "shutil.chown", "shutil.copyfile", "shutil.move",
    "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp",
))
# fmt: on
_LOOKS = ("open", "os.listdir", "os.scandir")
_FORBIDDEN_MODULES = frozenset(("_ctypes", "ctypes"))
_PROCESS_MODULES = frozenset(("_posixsubprocess",))
"""Starts processes past every audit event. asyncio imports it: left alone where seccomp forbids processes."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def confine(*, cpu_s: int, memory_bytes: int, output_bytes: int, folders: Sequence[str]) -> list[str]:
    """Puts every layer in force that the kernel allows, and returns their names.

    `folders` may be read besides the interpreter's library; the current folder always may.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    readable = _readable(folders)
    layers = ["namespaces"] if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0 else []
    if layers:  # counted by user and namespace: outside of one of its own, the user's other processes would count
        _limit(resource.RLIMIT_NPROC, _NUM_THREADS)
    if files.restrict(libc, readable):
        layers.append("landlock")
    _limit(resource.RLIMIT_CPU, cpu_s)
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, output_bytes)
    _limit(resource.RLIMIT_NOFILE, _NUM_OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    if syscalls.install(libc):
        layers.append("seccomp")
    elif "namespaces" not in layers:
        _limit(resource.RLIMIT_NPROC, 1)
    _add_hook(readable, _FORBIDDEN_MODULES if "seccomp" in layers else _FORBIDDEN_MODULES | _PROCESS_MODULES)
    return layers


def _readable(folders: Sequence[str]) -> list[str]:
    library = os.path.dirname(os.path.realpath(os.__file__))
    interpreter = os.path.realpath(os.path.join(sys.base_exec_prefix, "lib"))
    return [library, interpreter, os.path.realpath(os.getcwd()), *folders, *_LIBRARIES, *_DEVICES]


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))


def _add_hook(readable: Sequence[str], forbidden_modules: frozenset[str]) -> None:
    """The audit hook; it cannot be taken out again."""
    real_path, is_int = os.path.realpath, int
    allowed = tuple({path for folder in readable for path in (folder, real_path(folder))})

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN) or event in _CHANGES:
            raise PermissionError(f"programs here may not use {event}")
        if event == "import" and arguments[0] in forbidden_modules:
            raise ImportError(f"programs here may not import {arguments[0]}")
        if event in _LOOKS and not isinstance(arguments[0], is_int):
            path = real_path(os.fsdecode(arguments[0] or "."))
            if not any(path == folder or path.startswith(f"{folder}/") for folder in allowed):
                raise PermissionError(f"programs here may not read {path!r:.200}")
            if event == "open" and isinstance(arguments[2], is_int) and arguments[2] & _WRITES:
                raise PermissionError("programs here may not write files")

    sys.addaudithook(refuse)
