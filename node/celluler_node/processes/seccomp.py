"""The system calls a confined process is refused: a seccomp filter, written as a table and compiled to BPF here.

A list of what is denied, not of what is allowed: torch and its thread pools use a hundred calls that change with
every version, while what reaches beyond the process is a known and slow-growing list. Refusals answer EPERM, so that
honest code which merely tries gets an exception and not its death; calls for another architecture kill.
Source: Linux, Documentation/userspace-api/seccomp_filter.rst; numbers from asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

DENIED: dict[str, tuple[int | None, int | None]] = {
    # name: (x86_64, aarch64)
    # sockets: not one is made here; the channel's own was inherited
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "setsockopt": (54, 208), "getsockopt": (55, 209),
    # other programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # memory shared with others, and memory that no limit counts
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181), "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # what Landlock does not cover of files: their attributes, who opens them, where they are mounted
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "getxattrat": (464, 464),
    "listxattr": (194, 11), "llistxattr": (195, 12), "flistxattr": (196, 13), "listxattrat": (465, 465),
    "file_getattr": (468, 468), "statmount": (457, 457), "listmount": (458, 458), "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None),
    "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None), "inotify_init": (253, None),
    "inotify_init1": (294, 26), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18),
    # namespaces, mounts, identity
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "move_mount": (429, 429), "open_tree": (428, 428), "open_tree_attr": (467, 467),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145),
    "setregid": (114, 143), "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151),
    "setfsgid": (123, 152), "setgroups": (116, 159), "capset": (126, 91), "personality": (135, 92),
    "seccomp": (317, 277), "listns": (470, 470), "lsm_set_self_attr": (460, 460),
    # large attack surface in the kernel that no model needs
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0), "io_submit": (209, 2),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "modify_ldt": (154, None),
    "vmsplice": (278, 75),
    # the machine itself: also its disks, all of which these two write out
    "sync": (162, 81), "syncfs": (306, 267),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116), "acct": (163, 89),
    "vhangup": (153, 58), "iopl": (172, None), "ioperm": (173, None), "swapon": (167, 224), "swapoff": (168, 225),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
}  # fmt: skip

ON_CONDITION: dict[str, tuple[int, int]] = {
    "clone": (56, 220),  # threads yes, processes no
    "clone3": (
        435,
        435,
    ),  # its flags lie in memory that a filter cannot read: "not there", and libc falls back to clone
    "kill": (62, 129),  # itself only, as abort() does
    "tgkill": (234, 131),
    "prlimit64": (302, 261),  # itself only: with another's number it would limit the node
    "sched_setaffinity": (203, 122),
    "prctl": (157, 167),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
}

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
_PRCTL_ALLOWED = (2, 3, 15, 16, 29, 30, 39, 0x53564D41)  # getters, names of threads and mappings, timer slack
_FCNTL_DENIED = (8, 10, 15, 1024, 1026)  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY: signals, leases
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # isatty, size, bytes to read, descriptor flags

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_SECCOMP_CALL = {"x86_64": 317, "aarch64": 277}
_X32_BIT = 0x40000000

_LOAD, _JUMP, _JUMP_EQUAL, _JUMP_NOT_LESS, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1

Instruction = tuple[int, int, int, int]
"""(code, jump when true, jump when false, k)"""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def available() -> str | None:
    """None when a filter can be installed here, else why not."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return f"no seccomp filter is written for {machine}"
    action = ctypes.c_uint32(_ERRNO)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SECCOMP_CALL[machine], 2, 0, ctypes.byref(action)) != 0:  # SECCOMP_GET_ACTION_AVAIL
        return f"this kernel has no seccomp filters ({os.strerror(ctypes.get_errno())})"
    return None


def install() -> None:
    """Deny, from here on and for all threads, what the tables say. Needs no_new_privs. Raises OSError."""
    machine = platform.machine()
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in compile_filter(machine, os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SECCOMP_CALL[machine], _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(program)) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def compile_filter(machine: str, pid: int) -> list[Instruction]:
    """The filter for one architecture and one process. Every block either returns or falls through to the next."""
    architecture, column = _ARCHITECTURES[machine]
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_JUMP_NOT_LESS, 0, 1, _X32_BIT), _refuse(errno.EPERM)]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), _refuse(errno.EPERM)]
    number_of = {name: numbers[column] for name, numbers in ON_CONDITION.items()}
    code += _when(number_of["clone3"], [_refuse(errno.ENOSYS)])
    code += _when(number_of["clone"], _only(0, (_CLONE_THREAD,), mask=_CLONE_THREAD | _CLONE_NAMESPACES))
    code += _when(number_of["kill"], _only(0, (pid,)))
    code += _when(number_of["tgkill"], _only(0, (pid,)))
    code += _when(number_of["prlimit64"], _only(0, (0, pid)))
    code += _when(number_of["sched_setaffinity"], _only(0, (0, pid)))
    code += _when(number_of["prctl"], _only(0, _PRCTL_ALLOWED))
    code += _when(number_of["fcntl"], _none_of(1, _FCNTL_DENIED))
    code += _when(number_of["ioctl"], _only(1, _IOCTL_ALLOWED))
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _refuse(number: int) -> Instruction:
    return (_RETURN, 0, 0, _ERRNO | number)


def _when(number: int, block: list[Instruction]) -> list[Instruction]:
    """`block`, which must return on all its paths, for one call only."""
    return [(_JUMP_EQUAL, 0, len(block), number), *block]


def _load_argument(argument: int, mask: int | None) -> list[Instruction]:
    """The low half of an argument; what these calls look at is an int, or a flag in the low half."""
    load: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
    return load if mask is None else [*load, (_AND, 0, 0, mask)]


def _only(argument: int, values: tuple[int, ...], mask: int | None = None) -> list[Instruction]:
    """Allow the call when its argument is one of `values`."""
    tests: list[Instruction] = [(_JUMP_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [*_load_argument(argument, mask), *tests, _refuse(errno.EPERM), (_RETURN, 0, 0, _ALLOW)]


def _none_of(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    """Allow the call unless its argument is one of `values`."""
    tests: list[Instruction] = [(_JUMP_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [*_load_argument(argument, None), *tests, (_RETURN, 0, 0, _ALLOW), _refuse(errno.EPERM)]
