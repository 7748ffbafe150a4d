"""A barrier program as one writes it without a platform: each task starts the rank that it is given as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pyspark import BarrierTaskContext, SparkContext


def main(ranks: int, folder: str, program: str) -> None:
    """Run `program` as `ranks` ranks, their output in `folder`/rank-R.out."""

    def run(numbers: Iterator[int]) -> Iterator[int]:
        context = BarrierTaskContext.get()
        rank = context.partitionId()
        # A fixed port, for want of a platform that finds a free one; to agree on one by allGather would take a second.
        address = context.getTaskInfos()[0].address.split(":")[0]
        environment = {**os.environ, "MASTER_ADDR": address, "MASTER_PORT": "29500"}
        environment |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
        with Path(folder, f"rank-{rank}.out").open("wb") as output:
            code = subprocess.run([sys.executable, program], env=environment, stdout=output, check=False).returncode
        if code != 0:
            raise RuntimeError(f"rank {rank} ended with code {code}")
        yield from numbers

    context = SparkContext()
    context.parallelize(range(ranks), ranks).barrier().mapPartitions(run).collect()
    context.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
