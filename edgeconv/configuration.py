"""ESPnet's configuration: what it says about the convolutions in a checkpoint."""

import os
import stat
from pathlib import Path

from edgeconv.checkpoint import CheckpointError
from edgeconv.checkpoint.error import naming, shown

SIZE = 2**20  # bytes; 20,000 tokens take a third
REMEDY = "give the config.yaml that ESPnet wrote beside the checkpoint"


def read_causal(path: str | os.PathLike[str]) -> bool:
    """
    Read from the ``config.yaml`` of ESPnet's `asr_transducer` whether convolutions are causal.

    They are if ``encoder_conf.main_conf.dynamic_chunk_training`` is true, all of them.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{path}: reading it needs PyYAML; run `pip install pyyaml`") from error
    with naming(path):
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > SIZE:
            raise CheckpointError(
                f"a configuration must be a file of up to {SIZE} bytes", "", REMEDY
            )
        try:
            # Texts, lists and mappings: what else YAML can describe is not constructed.
            options = yaml.load(Path(path).read_bytes(), Loader=yaml.BaseLoader)
            encoder = options["encoder_conf"]
            is_transducer = "body_conf" in encoder
            chunks = encoder.get("main_conf", {}).get("dynamic_chunk_training", "false")
            causal = {"true": True, "false": False}[chunks.lower()]
        except Exception as error:  # PyYAML fails in many ways on what is no YAML
            expected = "encoder_conf must have body_conf and main_conf, as a transducer's has"
            raise CheckpointError(expected, shown(repr(error)), REMEDY) from error
        if not is_transducer:
            raise CheckpointError(
                "a configuration must be of espnet2.asr_transducer",
                f"an encoder of another task, such as espnet2.asr: {shown(options.get('encoder'))}",
                "leave `config` out, and pass `causal=True` or `causal=False`",
            )
    return causal
