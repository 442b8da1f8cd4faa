"""ESPnet's ``config.yaml``, as plain Python."""

import os
import stat
from pathlib import Path
from typing import Any

from edgeconv.checkpoint.error import misfit, naming

SIZE = 2**20  # bytes; 20,000 tokens take a third


def read_configuration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the ``config.yaml`` of ESPnet: texts, numbers, Booleans, lists and mappings."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{path}: reading it needs PyYAML; run `pip install pyyaml`") from error
    # In Python 5,000 tokens take half a second; libyaml reads them in 40 ms.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with naming(path):
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > SIZE:
            found = status.st_size if stat.S_ISREG(status.st_mode) else "no regular file"
            raise misfit(f"a configuration must be a file of up to {SIZE} bytes", found)
        try:
            content = Path(path).read_bytes()
            if any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(content, Loader=loader)):
                raise ValueError("an alias")  # with them a page can stand for terabytes
            configuration = yaml.load(content, Loader=loader)
        except Exception as error:  # PyYAML fails in many ways on what is no YAML
            found = " ".join(str(error).split())
            raise misfit("a configuration must be plain YAML", found) from error
        if not isinstance(configuration, dict):
            raise misfit("a configuration must be a mapping", configuration)
        return configuration
