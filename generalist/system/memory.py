"""Memory that the allocator keeps."""

import ctypes
import platform


def release_freed() -> None:
    """Gives memory that was freed back to the system. glibc would keep it for what is allocated next, such as the hundreds of
    megabytes that compiling takes for a moment; other libraries of C are left alone."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
