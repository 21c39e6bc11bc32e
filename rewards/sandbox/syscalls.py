"""A seccomp filter for programs: no sockets, no other processes, nothing that reaches out of this one.

Classic BPF, built here since the standard library has no seccomp (seccomp(2), linux/filter.h). It denies by name and
lets the rest pass: an interpreter needs hundreds of system calls, which differ between C libraries.
"""

import ctypes
import errno
import os
import platform
import struct

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h."""
_DENIED = {
    # name: (x86-64, arm64); None where there is none
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "setrlimit": (160, 164),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "seccomp": (317, 277),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
}
_CLONE, _CLONE3, _PRLIMIT64, _TGKILL = (56, 220), (435, 435), (302, 261), (234, 131)
_CLONE_THREAD = 0x10000
_X32 = 0x40000000
"""System calls of the x32 ABI on x86-64 have this bit, and other numbers."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_DENY = _ERROR | errno.EPERM
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def install(libc: ctypes.CDLL) -> bool:
    """Installs the filter for this process for good; False where the kernel or the processor does not allow it."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    program = filter_program(machine, os.getpid())
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.create_string_buffer(header), 0, 0) == 0


def filter_program(machine: str, pid: int) -> bytes:
    """The filter in the kernel's form, eight bytes an instruction."""
    column = list(_ARCHITECTURES).index(machine)
    code = [
        _instruction(_LOAD, _ARCHITECTURE_AT),
        _instruction(_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_AT),
    ]
    if machine == "x86_64":
        code += [_instruction(_AT_LEAST, _X32, 0, 1), _instruction(_RETURN, _DENY)]
    for numbers in _DENIED.values():
        if (number := numbers[column]) is not None:
            code += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, _DENY)]
    code += [  # a thread, but no process
        _instruction(_EQUAL, _CLONE[column], 0, 4),
        _instruction(_LOAD, _ARGUMENTS_AT),
        _instruction(_ANY_BIT, _CLONE_THREAD, 0, 1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _DENY),
    ]
    code += [  # its flags lie in memory, where a filter cannot look: C libraries fall back to clone
        _instruction(_EQUAL, _CLONE3[column], 0, 1),
        _instruction(_RETURN, _ERROR | errno.ENOSYS),
    ]
    code += [  # reading limits, but not setting them: the third argument is a pointer to new ones
        _instruction(_EQUAL, _PRLIMIT64[column], 0, 6),
        _instruction(_LOAD, _ARGUMENTS_AT + 16),
        _instruction(_EQUAL, 0, 0, 3),
        _instruction(_LOAD, _ARGUMENTS_AT + 20),
        _instruction(_EQUAL, 0, 0, 1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _DENY),
    ]
    code += [  # abort() signals its own process
        _instruction(_EQUAL, _TGKILL[column], 0, 4),
        _instruction(_LOAD, _ARGUMENTS_AT),
        _instruction(_EQUAL, pid, 0, 1),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _DENY),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
