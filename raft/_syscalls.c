/* What raft/syscalls.py does, where `make compile` was called: the same functions with no ctypes between, which
   takes 1 to 2 microseconds a call. What they are for, what they return and raise is told there. All of them
   keep the interpreter's lock. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SHORT_BYTES
#error "cli/compile.py gives the SHORT_BYTES of raft/syscalls.py"
#endif
#define MOST_EVENTS 1024 /* the others come with the next poll */

static PyObject *plain_type; /* socket.socket: others (TLS) are asked themselves */
static PyObject *name_data, *name_fileno, *name_send, *name_view;

/* A number as a descriptor; -1 with an exception. */
static int
descriptor_from(PyObject *number)
{
    long value = PyLong_AsLong(number);
    if (value >= 0 && value <= INT_MAX)
        return (int)value;
    if (!PyErr_Occurred()) { /* what a closed socket has */
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return -1;
}

/* The descriptor of a socket or an epoll; -1 with an exception. */
static int
descriptor_of(PyObject *object)
{
    PyObject *number = PyObject_CallMethodNoArgs(object, name_fileno);
    if (number == NULL)
        return -1;
    int descriptor = descriptor_from(number);
    Py_DECREF(number);
    return descriptor;
}

static PyObject *
send_(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "send(sock: socket, data: bytes)");
        return NULL;
    }
    PyObject *sock = arguments[0], *data = arguments[1];
    if ((PyObject *)Py_TYPE(sock) != plain_type || PyBytes_GET_SIZE(data) > SHORT_BYTES)
        return PyObject_CallMethodOneArg(sock, name_send, data);
    int descriptor = descriptor_of(sock);
    if (descriptor < 0)
        return NULL;
    ssize_t sent;
    do
        sent = send(descriptor, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data), MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromSsize_t(sent);
}

/* recv into buffer.data, a bytearray: how many bytes came; -1 with an exception. */
static Py_ssize_t
receive_into(PyObject *sock, PyObject *buffer, PyObject *data, Py_ssize_t most)
{
    if (!PyByteArray_Check(data)) {
        PyErr_SetString(PyExc_TypeError, "Buffer.data is no bytearray");
        return -1;
    }
    Py_ssize_t size = PyByteArray_GET_SIZE(data);
    if (most <= 0 || most > size)
        most = size;
    if ((PyObject *)Py_TYPE(sock) != plain_type) {
        PyObject *view = PyObject_GetAttr(buffer, name_view);
        if (view == NULL)
            return -1;
        PyObject *number = PyObject_CallMethod(sock, "recv_into", "On", view, most);
        Py_DECREF(view);
        Py_ssize_t received = number == NULL ? -1 : PyLong_AsSsize_t(number);
        Py_XDECREF(number);
        return received;
    }
    int descriptor = descriptor_of(sock);
    if (descriptor < 0)
        return -1;
    ssize_t received;
    do
        received = recv(descriptor, PyByteArray_AS_STRING(data), (size_t)most, MSG_DONTWAIT);
    while (received < 0 && errno == EINTR);
    if (received < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    return received;
}

static PyObject *
receive(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 && count != 3) {
        PyErr_SetString(PyExc_TypeError, "receive(sock: socket, buffer: Buffer, most: int = 0)");
        return NULL;
    }
    Py_ssize_t most = count == 3 ? PyLong_AsSsize_t(arguments[2]) : 0;
    if (most == -1 && PyErr_Occurred())
        return NULL;
    PyObject *data = PyObject_GetAttr(arguments[1], name_data);
    if (data == NULL)
        return NULL;
    Py_ssize_t received = receive_into(arguments[0], arguments[1], data, most);
    Py_DECREF(data);
    return received < 0 ? NULL : PyLong_FromSsize_t(received);
}

static PyObject *
receive_bytes(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "receive_bytes(sock: socket, buffer: Buffer)");
        return NULL;
    }
    PyObject *data = PyObject_GetAttr(arguments[1], name_data), *bytes = NULL;
    if (data == NULL)
        return NULL;
    Py_ssize_t received = receive_into(arguments[0], arguments[1], data, 0);
    if (received >= 0)
        bytes = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(data), received);
    Py_DECREF(data);
    return bytes;
}

static PyObject *
poll_now(PyObject *Py_UNUSED(module), PyObject *epoll)
{
    struct epoll_event events[MOST_EVENTS];
    int descriptor = descriptor_of(epoll);
    if (descriptor < 0)
        return NULL;
    int count;
    do
        count = epoll_wait(descriptor, events, MOST_EVENTS, 0);
    while (count < 0 && errno == EINTR);
    if (count < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *list = PyList_New(count);
    for (int at = 0; list != NULL && at < count; at++) {
        PyObject *pair = Py_BuildValue("iI", events[at].data.fd, events[at].events);
        if (pair == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, at, pair);
    }
    return list;
}

static PyObject *
signal_eventfd(PyObject *Py_UNUSED(module), PyObject *number)
{
    const uint64_t one = 1;
    int descriptor = descriptor_from(number);
    if (descriptor < 0)
        return NULL;
    while (write(descriptor, &one, sizeof one) < 0) {
        if (errno == EAGAIN) /* the counter is full */
            break;
        if (errno != EINTR)
            return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"poll_now", poll_now, METH_O, NULL},
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, NULL},
    {"receive_bytes", (PyCFunction)(void (*)(void))receive_bytes, METH_FASTCALL, NULL},
    {"send", (PyCFunction)(void (*)(void))send_, METH_FASTCALL, NULL},
    {"signal_eventfd", signal_eventfd, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "raft._syscalls", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC
PyInit__syscalls(void)
{
    PyObject *sockets = PyImport_ImportModule("socket");
    if (sockets == NULL)
        return NULL;
    plain_type = PyObject_GetAttrString(sockets, "socket");
    Py_DECREF(sockets);
    name_data = PyUnicode_InternFromString("data");
    name_fileno = PyUnicode_InternFromString("fileno");
    name_send = PyUnicode_InternFromString("send");
    name_view = PyUnicode_InternFromString("view");
    if (!plain_type || !name_data || !name_fileno || !name_send || !name_view)
        return NULL;
    return PyModule_Create(&definition);
}
