"""Wrong wall clocks for real processes: a few lines of C in front of the C library. Monotonic
clocks stay right, as they do where somebody sets a machine's time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) {
  const char *seconds = getenv("SHIFT_SECONDS");
  return seconds ? atol(seconds) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(clock, now);
  int wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
  if (!failed && wall) now->tv_sec += shift();
  return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec precise;
  int failed = clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return failed;
}

time_t time(time_t *now) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  if (now) *now = precise.tv_sec;
  return precise.tv_sec;
}
"""


class SkewedClocks:
    """Makes environments in which the wall clock is wrong; `possible` if this machine can."""

    def __init__(self, folder: Path) -> None:
        self._library = folder / "shifted.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        self.possible = compiler is not None
        if compiler:
            source = self._library.with_suffix(".c")
            source.write_text(_SOURCE)
            command = [compiler, "-shared", "-fPIC", "-O1", "-o", self._library, source, "-ldl"]
            subprocess.run(command, check=True)

    def environment(self, seconds: int) -> dict[str, str]:
        if not (self.possible and seconds):
            return {}
        return {"LD_PRELOAD": str(self._library), "SHIFT_SECONDS": str(seconds)}
