"""Reading YAML whose keys are there once."""

from typing import Any

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """A loader that refuses a key that is there twice, of which YAML's own takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            yaml.constructor.ConstructorError: If it has a key twice, with the place of the second.
        """
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value
            if name in seen:
                problem = f"the key {name!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
