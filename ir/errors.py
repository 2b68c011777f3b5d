"""Every error that refquant raises on purpose."""


class RefquantError(Exception):
    """Base of all errors raised on purpose; what the user can act on."""


class VerifyError(RefquantError, ValueError):
    """A graph, a file, or the call of an op, that breaks its rules."""


class UnsupportedError(RefquantError, NotImplementedError):
    """A legal model that refquant does not execute yet."""
