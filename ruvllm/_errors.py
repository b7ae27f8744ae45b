"""Every exception ruvllm raises, one per status of the core.

RuvllmError
├── ArgumentError     (ValueError)         an argument is outside its range
├── FormatError       (ValueError)         bytes from outside are not what they should be
├── FileError         (OSError)            the operating system refused
│   └── NotFoundError (FileNotFoundError)  no such file, key, row or tensor
├── OutOfMemoryError  (MemoryError)        an allocation failed
├── FullError         (ValueError)         a stated limit is reached: context, queue, budget
├── CancelledError                         the caller cancelled
├── UnsupportedError  (ValueError)         valid, but not something this build can do
├── StateError        (RuntimeError)       closed, busy, or not ready for this call
└── InternalError     (RuntimeError)       a broken invariant: a bug of ours
"""

from __future__ import annotations


class RuvllmError(Exception):
    """The base of every exception of this package."""


class ArgumentError(RuvllmError, ValueError):
    """An argument is outside its range; the message names it, the value found and the range."""


class FormatError(RuvllmError, ValueError):
    """A file or message is not what it should be; the message says where and how."""


class FileError(RuvllmError, OSError):
    """The operating system refused a file or device operation."""


class NotFoundError(FileError, FileNotFoundError):
    """There is no such file, key, row or tensor."""


class OutOfMemoryError(RuvllmError, MemoryError):
    """An allocation failed; nothing was changed."""


class FullError(RuvllmError, ValueError):
    """A stated limit is reached: the context, a queue, a budget."""


class CancelledError(RuvllmError):
    """The call was cancelled by its caller."""


class UnsupportedError(RuvllmError, ValueError):
    """The input is valid, but this build cannot do it; the message says what it can."""


class StateError(RuvllmError, RuntimeError):
    """The object is closed, busy, or not ready for this call."""


class InternalError(RuvllmError, RuntimeError):
    """An invariant of ours is broken: please report it."""
