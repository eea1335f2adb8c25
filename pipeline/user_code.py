"""A user's own functions, named in a configuration as "module:function"."""

import importlib
from collections.abc import Callable
from typing import Any

from pipeline.config_yaml import one_line
from pipeline.errors import ConfigError


def user_function(key: str, name: str) -> Callable[..., Any]:
    """Import the function that a key of the configuration names.

    Args:
        key: For messages, such as "model.name".
        name: "module:function".

    Raises:
        ConfigError: If there is no such module, or nothing that can be called in it.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{key} is {name!r}, but module {module_name!r} cannot be imported: "
            f"{type(error).__name__}: {one_line(error)}; install it or put its folder on PYTHONPATH"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"{key} is {name!r}, but {module_name!r} has no callable {attribute!r}")
    return function  # type: ignore[no-any-return]
