"""A breath for other threads in a long loop. Not compiled (cli/compile.py): that is its whole point."""


def breathe() -> None:
    """Let other threads have the interpreter's lock if they want it. Any thread.

    Compiled code keeps the lock until it waits for something, however long that takes; entering a function
    that is interpreted is where CPython looks whether it is wanted. A loop over what a client may make as
    long as it likes calls this every thousand times or so.
    """
