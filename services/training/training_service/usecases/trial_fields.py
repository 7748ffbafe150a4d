"""What clients of tunings call what trainings complain of."""

from __future__ import annotations

from servicekit.errors import ServiceError, renamed

_FIELDS = {
    "dlFramework": "resDef.framework",
    "clusterSize": "resDef.workerNum",
    "minWorkers": "resDef.workerNum",
    "gpus": "resDef.gpuNum",
    "syncMode": "resDef.syncMode",
    "wfinit": "resDef.initWeightPath",
    "wtfolder": "resDef.initWeightPath",
    "sigid": "resDef.resourceInstanceId",
    "maxSeconds": "max_seconds",
}


def as_tuning_knows(error: ServiceError) -> ServiceError:
    """The error with its field as a tuning's request has it."""
    field = error.metadata.get("field", "")
    return renamed(error, _FIELDS[field]) if field in _FIELDS else error
