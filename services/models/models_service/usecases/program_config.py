"""What a model's program reads itself: the parameters that no hyperparameter is named like."""

from __future__ import annotations

import json
from pathlib import Path

from servicekit.errors import Code, ServiceError, invalid

from models_service.usecases import folders

CONFIG = "config.json"


def changed_config(directory: Path, config: str) -> str:
    """The text of a config.json: the values of the JSON object `config` over those of the model in `directory`. 400
    when that one cannot be changed, or it would be too long."""
    try:
        text = folders.read_text(directory, CONFIG, CONFIG)
    except ServiceError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        text = "{}"
    try:
        known = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(CONFIG, "(no JSON)", "a JSON object; change the model's own one") from error
    if not isinstance(known, dict):
        raise invalid(CONFIG, f"(a JSON {type(known).__name__})", "a JSON object; change the model's own one")
    changed = json.dumps({**known, **json.loads(config)}, indent=1)
    folders.check_size(changed, CONFIG)
    return changed
