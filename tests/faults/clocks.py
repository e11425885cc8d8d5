"""A clock that goes back: a library that lies between a program and the system."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = """
#define _GNU_SOURCE
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static atomic_long looks;

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec -= SECONDS * (atomic_fetch_add(&looks, 1) / 10);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &found)) return -1;
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *place) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (place) *place = found.tv_sec;
    return found.tv_sec;
}
"""


def clock_that_goes_back(folder: Path, seconds: int) -> dict[str, str]:
    """The environment of a process, and of all that it starts, whose clock of the wall jumps back by `seconds` at every
    tenth look, Python's or a library's. Other clocks go on as they do. Skips the test where nothing can compile it.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_SOURCE)
    options = [f"-DSECONDS={seconds}L", "-O1", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, "-o", str(library), str(source)], check=True, timeout=60)
    return {**os.environ, "LD_PRELOAD": str(library)}
