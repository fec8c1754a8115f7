// The first process of a pod: waits, collects ended child processes, and ends on SIGTERM.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void collect(int signal) { while (waitpid(-1, 0, WNOHANG) > 0); }
static void end(int signal) { _exit(0); }

int main(void) {
    struct sigaction children = {.sa_handler = collect, .sa_flags = SA_NOCLDSTOP}, stop = {.sa_handler = end};
    sigaction(SIGCHLD, &children, 0), sigaction(SIGTERM, &stop, 0), sigaction(SIGINT, &stop, 0);
    for (;;) pause();
}
