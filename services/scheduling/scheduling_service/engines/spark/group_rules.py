"""What an instance group of the engine spark may be."""

from __future__ import annotations

from servicekit.errors import invalid

from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.engines.spark import submission

# On these rests what the queue promises: a gang has its slots and GPUs and no others, starts whole or not at all, runs
# once, and its end is ours to tell.
OURS = frozenset(
    {
        *("spark.master", "spark.app.name", "spark.submit.deployMode", "spark.driver.supervise"),
        *("spark.cores.max", "spark.executor.cores", "spark.executor.instances", "spark.task.cpus"),
        *("spark.executor.resource.gpu.amount", "spark.task.resource.gpu.amount"),
        *("spark.scheduler.minRegisteredResourcesRatio", "spark.speculation"),
        *("spark.task.maxFailures", "spark.stage.maxConsecutiveAttempts", "spark.yarn.maxAppAttempts"),
        *("spark.yarn.submit.waitAppCompletion", "spark.kubernetes.submission.waitAppCompletion"),
        "spark.kubernetes.driver.pod.name",
    }
)
OURS_BELOW = "spark.dynamicAllocation."


def check(group: InstanceGroup) -> None:
    """400 naming the field: a master that we know, and settings of Spark but for those that are ours."""
    url = group.master_url
    known = (submission.STANDALONE, submission.KUBERNETES)
    if url != submission.YARN and not any(pattern.fullmatch(url) for pattern in known):
        raise invalid("masterUrl", url, "spark://HOST:PORT, k8s://HOST:PORT or yarn")
    for key, value in group.engine_options.items():
        if not key.startswith("spark.") or any(character.isspace() or character == "=" for character in key):
            raise invalid("engineOptions", key, "settings of Spark, spark....")
        if key in OURS or key.startswith(OURS_BELOW):
            raise invalid("engineOptions", key, "settings of Spark that the platform does not set for each job")
        if key == submission.REST_PORT and not (value.isdecimal() and 0 < int(value) < 65536):
            raise invalid(f"engineOptions.{key}", value, "a port, 1 to 65535")
