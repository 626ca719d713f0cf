"""Read bandwidth of this machine's memory, to compare with the rate at which systems read their weights.

python benchmarks/peers/bandwidth.py
"""

import ctypes
import subprocess
import tempfile
from pathlib import Path

__all__ = ["Probe"]

SOURCE = r"""
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

typedef uint64_t vector __attribute__((vector_size(64)));
typedef struct { const vector *from; size_t count; int ahead; vector sum; } part;

/* 16 independent sums of 64 bytes, with or without prefetching: which is faster depends on the machine. */
static void *read_part(void *argument) {
    part *p = argument;
    vector sums[16] = {0};
    for (size_t i = 0; i + 16 <= p->count; i += 16) {
        for (int j = 0; j < 16; j++) {
            if (p->ahead) __builtin_prefetch((const char *)(p->from + i + j) + p->ahead, 0, 3);
            sums[j] += p->from[i + j];
        }
    }
    for (int j = 0; j < 16; j++) p->sum += sums[j];
    return NULL;
}

void *reserve(size_t bytes) {
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    madvise(memory, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < bytes; i += 64) memory[i] = 1;  /* untouched pages would all map to one page of zeros */
    return memory;
}

void release(void *memory, size_t bytes) { munmap(memory, bytes); }

double seconds(const void *memory, size_t bytes, int threads, int ahead, uint64_t *sum) {
    part parts[256];
    pthread_t running[256];
    struct timespec start, end;
    size_t count = bytes / sizeof(vector) / threads;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int i = 0; i < threads; i++) {
        parts[i] = (part){(const vector *)memory + i * count, count, ahead, {0}};
        pthread_create(&running[i], NULL, read_part, &parts[i]);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(running[i], NULL);
        *sum += parts[i].sum[0];
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    return end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) * 1e-9;
}
"""
BYTES = 1 << 30  # much larger than any cache
AHEAD = (0, 1024, 4096)  # bytes to prefetch ahead


class Probe:
    """Reads 1 GiB with a number of threads. Needs a C compiler."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder, "probe.c"), Path(folder, "probe.so")
            source.write_text(SOURCE)
            flags = ["-O3", "-march=native", "-Wno-psabi", "-shared", "-fPIC", "-pthread"]
            subprocess.run(["cc", *flags, source, "-o", library], check=True)
            self._library = ctypes.CDLL(str(library))
        self._library.reserve.restype = ctypes.c_void_p
        self._library.reserve.argtypes = [ctypes.c_size_t]
        self._library.release.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._library.seconds.restype = ctypes.c_double
        self._library.seconds.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]

    def bytes_per_second(self, times: int = 4) -> float:
        """Return the best of ``times`` reads with each prefetch distance."""
        buffer = self._library.reserve(BYTES)
        if not buffer:
            raise MemoryError(f"The bandwidth probe cannot allocate {BYTES:,} bytes.")
        total = ctypes.c_uint64()
        try:
            seconds = [
                self._library.seconds(buffer, BYTES, self._threads, ahead, ctypes.byref(total))
                for ahead in AHEAD
                for _ in range(times)
            ]
        finally:
            self._library.release(buffer, BYTES)
        return BYTES / min(seconds)


if __name__ == "__main__":
    probe = Probe(2)
    print(" ".join(f"{probe.bytes_per_second() / 1e9:.1f}" for _ in range(5)), "GB/s")
