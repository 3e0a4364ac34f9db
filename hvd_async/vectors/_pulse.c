/* A count in shared memory, or on another host, that a thread raises while its process lives: no lock of Python stops it.
 *
 * The thread is never inside the interpreter. Its record is not freed: a thread that waits inside MPI may outlive every use.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* Beats after the limit at which the process ends itself, which leaves others time to read that it hangs. */
#define GRACE_BEATS 4
#define SECOND 1000000000LL

/* MPI_Send. Handles are pointers in some MPIs, ints in others. */
typedef int (*send_pointers)(const void *, int, void *, int, int, void *);
typedef int (*send_ints)(const void *, int, int, int, int, int);

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int is_over, has_ended;
    int64_t every, limit, touched; /* nanoseconds; `touched` is atomic */
    int64_t hung;                  /* value in place of the count */
    int ends_process;
    int64_t *word; /* NULL: the owner is sent `request`, the word's index and the value */
    unsigned long long send, type, communicator;
    int owner, tag, are_pointers;
    int64_t request, index;
} Pulse;

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void write_word(const Pulse *pulse, int64_t value) {
    const int64_t message[4] = {pulse->request, pulse->index, value, 0};
    void *send = (void *)(uintptr_t)pulse->send;
    if (pulse->word)
        __atomic_store_n(pulse->word, value, __ATOMIC_SEQ_CST);
    else if (pulse->are_pointers)
        ((send_pointers)send)(message, 4, (void *)(uintptr_t)pulse->type, pulse->owner, pulse->tag,
                              (void *)(uintptr_t)pulse->communicator);
    else
        ((send_ints)send)(message, 4, (int)pulse->type, pulse->owner, pulse->tag, (int)pulse->communicator);
}

/* Wait until `*flag`, at most `nanoseconds`; the lock is held. */
static void wait_for(Pulse *pulse, const int *flag, int64_t nanoseconds) {
    int64_t end = now() + nanoseconds;
    struct timespec until = {(time_t)(end / SECOND), (long)(end % SECOND)};
    while (!*flag && pthread_cond_timedwait(&pulse->changed, &pulse->lock, &until) == 0) {}
}

static void *run(void *argument) {
    Pulse *pulse = argument;
    int64_t count = 1;
    int num_hung = 0;
    pthread_mutex_lock(&pulse->lock);
    for (;;) {
        wait_for(pulse, &pulse->is_over, pulse->every);
        if (pulse->is_over) break;
        pthread_mutex_unlock(&pulse->lock);
        int is_hung = now() - __atomic_load_n(&pulse->touched, __ATOMIC_SEQ_CST) > pulse->limit;
        num_hung = is_hung ? num_hung + 1 : 0;
        count++;
        write_word(pulse, is_hung ? pulse->hung : count);
        if (pulse->ends_process && num_hung > GRACE_BEATS) kill(getpid(), SIGKILL);
        pthread_mutex_lock(&pulse->lock);
    }
    pulse->has_ended = 1;
    pthread_cond_broadcast(&pulse->changed);
    pthread_mutex_unlock(&pulse->lock);
    return NULL;
}

/* Start the thread, which handles no signals: they would not wake the threads that wait for them. */
static int start(Pulse *pulse) {
    pthread_condattr_t clock;
    pthread_attr_t detached;
    pthread_t thread;
    sigset_t all, before;
    pthread_mutex_init(&pulse->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&pulse->changed, &clock);
    pthread_condattr_destroy(&clock);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, &detached, run, pulse);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
    return error;
}

PyObject *py_start_pulse(PyObject *self, PyObject *args) {
    unsigned long long word;
    double every, limit;
    long long hung;
    int ends_process;
    Pulse *pulse = calloc(1, sizeof *pulse);
    if (!pulse) return PyErr_NoMemory();
    long long request, index;
    if (!PyArg_ParseTuple(args, "KddLp(KKKiiLLp)", &word, &every, &limit, &hung, &ends_process, &pulse->send, &pulse->type,
                          &pulse->communicator, &pulse->owner, &pulse->tag, &request, &index, &pulse->are_pointers)) {
        free(pulse);
        return NULL;
    }
    pulse->word = (int64_t *)(uintptr_t)word;
    pulse->request = request;
    pulse->index = index;
    pulse->every = (int64_t)(every * SECOND);
    pulse->limit = (int64_t)(limit * SECOND);
    pulse->hung = hung;
    pulse->ends_process = ends_process;
    pulse->touched = now();
    int error = start(pulse);
    if (error) {
        free(pulse);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromVoidPtr(pulse);
}

PyObject *py_touch_pulse(PyObject *self, PyObject *args) {
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "K", &address)) return NULL;
    __atomic_store_n(&((Pulse *)(uintptr_t)address)->touched, now(), __ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

PyObject *py_stop_pulse(PyObject *self, PyObject *args) {
    unsigned long long address;
    double seconds;
    if (!PyArg_ParseTuple(args, "Kd", &address, &seconds)) return NULL;
    Pulse *pulse = (Pulse *)(uintptr_t)address;
    int has_ended;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&pulse->lock);
    pulse->is_over = 1;
    pthread_cond_broadcast(&pulse->changed);
    wait_for(pulse, &pulse->has_ended, (int64_t)(seconds * SECOND));
    has_ended = pulse->has_ended;
    pthread_mutex_unlock(&pulse->lock);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(has_ended);
}
