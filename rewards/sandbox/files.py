"""Landlock for programs: read the interpreter's library, nothing else; write nothing (landlock(7), Linux 5.13)."""

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, the same on every architecture."""
_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _READ_FILE, _READ_DIR = 1, 1 << 2, 1 << 3
_FILES_1, _REFER_2, _TRUNCATE_3, _IOCTL_DEV_5 = (1 << 13) - 1, 1 << 13, 1 << 14, 1 << 15
_NET_4, _SCOPES_6 = 0b11, 0b11
"""TCP bind and connect; abstract Unix sockets and signals to processes outside."""
_PR_SET_NO_NEW_PRIVS = 38


def restrict(libc: ctypes.CDLL, readable: Iterable[str]) -> bool:
    """Leaves this process only reading of what lies beneath `readable`; False where the kernel has no Landlock."""
    version = libc.syscall(_CREATE_RULESET, None, 0, _VERSION)
    if version < 1:
        return False
    files = _FILES_1 | (_REFER_2 if version >= 2 else 0) | (_TRUNCATE_3 if version >= 3 else 0)
    files |= _IOCTL_DEV_5 if version >= 5 else 0
    attributes = struct.pack("=QQQ", files, _NET_4, _SCOPES_6)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.create_string_buffer(attributes), len(attributes), 0)
    if ruleset < 0:
        return False
    for path in readable:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not every system has every folder
        rights = _READ_FILE | _EXECUTE | (_READ_DIR if os.path.isdir(path) else 0)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
        added = libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        os.close(descriptor)
        if added != 0:
            return False
    restricted = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return restricted
