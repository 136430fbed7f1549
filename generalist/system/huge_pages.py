"""Huge memory pages; imported before anything that allocates."""

import os
import platform
import sys


def use_huge_pages() -> None:
    """Restarts Python with huge memory pages: a CPU training step allocates and frees gigabytes, and with 4 KiB pages a third
    of its time is page faults. glibc reads the setting only when a process starts."""
    setting = "glibc.malloc.hugetlb=1"
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    # The variable survives the restart and ends the recursion; a user's own setting is respected too.
    if platform.libc_ver()[0] == "glibc" and "hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{setting}" if tunables else setting
        # `orig_argv`, with the interpreter's own options, such as -m and -W.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
