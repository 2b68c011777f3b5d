"""``with_args`` and ``with_callable_args``: constructors with some arguments already given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


class Factory:
    """A constructor with some arguments already given; every call makes a new instance.

    Parameters
    ----------
    p : functools.partial
        The constructor and the arguments that are fixed.

    Examples
    --------
    >>> make = Factory(partial(dict, a=1)).with_args(b=2).with_callable_args(c=list)
    >>> make(), make(b=3), make() is make()
    ({'a': 1, 'b': 2, 'c': []}, {'a': 1, 'b': 3, 'c': []}, False)
    """

    def __init__(self, p: partial[Any]) -> None:
        self.p = p
        self.callable_args: dict[str, Callable[[], Any]] = {}

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Construct; arguments given here win over those of the factory."""
        for name, make in self.callable_args.items():
            if name not in keywords:
                keywords[name] = make()
        return self.p(*args, **keywords)

    def __repr__(self) -> str:
        return f"{self.p!r}{self.callable_args!r}"

    def with_args(self, **kwargs: Any) -> Factory:
        """Return a factory with further arguments fixed."""
        return Factory(partial(self, **kwargs))

    def with_callable_args(self, **kwargs: Callable[[], Any]) -> Factory:
        """Return a factory with arguments that are computed at each construction."""
        result = Factory(self.p)
        result.callable_args = {**self.callable_args, **kwargs}
        return result


class HasFactories:
    """Gives a class ``with_args`` and ``with_callable_args``."""

    @classmethod
    def with_args(cls, **kwargs: Any) -> Factory:
        """Return a factory of this class with some arguments fixed.

        Parameters
        ----------
        **kwargs
            Constructor arguments.

        Returns
        -------
        Factory
            Call it for an instance; chain ``with_args`` for more arguments.
        """
        return Factory(partial(cls, **kwargs))

    @classmethod
    def with_callable_args(cls, **kwargs: Callable[[], Any]) -> Factory:
        """Return a factory with arguments that are computed at each construction.

        Parameters
        ----------
        **kwargs : callables without arguments
            Each is called for the value of the argument.
        """
        return Factory(partial(cls)).with_callable_args(**kwargs)
