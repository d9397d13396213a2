// A library for LD_PRELOAD that shifts the wall clock of a process by the seconds in a file. The monotonic clock stays.
// libfaketime does not work with the jemalloc of Debian's Redis, which looks at the clock while it is being set up.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *ahead;

__attribute__((constructor)) static void map(void) {
	int file = open(getenv("TIERFLOW_TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
	void *at = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
	if (at == MAP_FAILED) abort();
	ahead = at;
}

static long long by(void) { return ahead ? *ahead : 0; }

int clock_gettime(clockid_t id, struct timespec *t) {
	int failed = syscall(SYS_clock_gettime, id, t);
	if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += by();
	return failed;
}

int gettimeofday(struct timeval *t, void *zone) {
	int failed = syscall(SYS_gettimeofday, t, zone);
	if (!failed) t->tv_sec += by();
	return failed;
}

time_t time(time_t *t) {
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (t) *t = now.tv_sec;
	return now.tv_sec;
}
