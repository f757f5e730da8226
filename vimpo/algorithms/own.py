"""A user-supplied algorithm: one subclass of PolicyGradient in one Python file."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

from vimpo.algorithms.base import Algorithm, PolicyGradient
from vimpo.config import ConfigError, OwnConfig
from vimpo.config.algorithms import read_own_file


def own_algorithm(config: OwnConfig) -> Algorithm:
    """The one subclass of :class:`PolicyGradient` in the file that the configuration names.

    Raises ConfigError if the file holds none, or cannot be run.
    """
    path = config.objective
    module = ModuleType(f"vimpo_own_{config.sha256}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look there
    content = read_own_file(path, config.sha256)
    try:
        # Not by import, whose cache compares file times and could run older content.
        exec(compile(content, path, "exec"), module.__dict__)
    except (SyntaxError, ImportError) as error:
        raise ConfigError(f"algorithms: '{path}' cannot be run: {error}") from None
    found = [c for c in vars(module).values() if isinstance(c, type)]
    own = [c for c in found if issubclass(c, PolicyGradient) and c.__module__ == module.__name__]
    if len(own) != 1:
        raise ConfigError(
            f"algorithms: '{path}' defines {len(own)} subclasses of PolicyGradient; allowed: one"
        )
    if own[0].needs_critic:
        raise ConfigError(f"algorithms: '{path}' needs a critic; allowed: `objective: ppo` has one")
    if own[0].needs_continuations and config.continued is None:
        raise ConfigError(
            f"algorithms: '{path}' needs continuations, and `continuations` is null; allowed: "
            "for example `continuations: {k: 4}`"
        )
    try:
        inspect.signature(own[0]).bind(config, **config.settings)
    except TypeError as error:
        raise ConfigError(
            f"algorithms: settings do not fit {own[0].__name__} in '{path}': {error}; "
            "allowed: its keyword arguments"
        ) from None
    return own[0](config, **config.settings)
