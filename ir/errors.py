"""Every error that refquant raises on purpose."""


class RefquantError(Exception):
    """Base of all errors raised on purpose; what the user can act on."""


class VerifyError(RefquantError, ValueError, AssertionError, RuntimeError, IndexError):
    """A graph, a file, or the call of an op or observer, that breaks its rules.

    It is also each of the classes that torch raises for such mistakes, so that a handler written
    for torch catches it.
    """


class UnsupportedError(RefquantError, NotImplementedError):
    """A legal model that refquant does not execute yet."""
