"""A config as text that keeps what a run used."""

import pprint

from mmengine.config import Config


def config_text(config: Config) -> str:
    """Write a config as Python, one key after the other; reading it gives the config back."""
    lines = (
        f"{key} = {pprint.pformat(value, width=100, sort_dicts=False)}"
        for key, value in config.to_dict().items()
    )
    return "\n".join(lines) + "\n"
