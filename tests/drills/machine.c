/* The machine of one program, out of order: its clock is wrong, or its disk is slow. Loaded by LD_PRELOAD.
 *
 * The file that SSLMED_DRILL_MACHINE names holds two doubles, which a test changes while the program runs: seconds that
 * its wall clock is ahead, and seconds that each fsync takes longer. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile double *told;

__attribute__((constructor)) static void open_told(void) {
    const char *path = getenv("SSLMED_DRILL_MACHINE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *found = file < 0 ? MAP_FAILED : mmap(NULL, 2 * sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (found != MAP_FAILED) told = found;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = (int)syscall(SYS_clock_gettime, clock, now);
    if (done == 0 && told && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += (time_t)told[0];
    return done;
}

time_t time(time_t *now) {
    struct timespec read;
    clock_gettime(CLOCK_REALTIME, &read);
    if (now) *now = read.tv_sec;
    return read.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec read;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &read);
    now->tv_sec = read.tv_sec;
    now->tv_usec = read.tv_nsec / 1000;
    return 0;
}

int fsync(int file) {
    if (told && told[1] > 0) {
        struct timespec wait = {(time_t)told[1], (long)((told[1] - (time_t)told[1]) * 1e9)};
        nanosleep(&wait, NULL);
    }
    return (int)syscall(SYS_fsync, file);
}
