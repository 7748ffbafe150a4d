"""`make bench`: measured against doing without the platform, side by side in one run.

Prints the tables and writes them between the markers of docs/benchmarks.md. `make bench ONLY=datasets` measures one
section. Takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from dataset_costs import measure_datasets
from exec_latency import measure_exec_latency
from inference_costs import measure_inference
from platform_costs import measure_platform
from report import Row, publish
from scheduling_costs import measure_scheduling
from spark_costs import measure_spark
from training_costs import measure_training
from tuning_asks import measure_asks
from tuning_costs import measure_tuning
from tuning_curves import measure_curves
from tuning_quality import measure_quality

SECTIONS: dict[str, Callable[[], list[Row]]] = {
    "platform": measure_platform,
    "datasets": measure_datasets,
    "training": measure_training,
    "tuning": measure_tuning,
    "inference": measure_inference,
    "scheduling": measure_scheduling,
    "spark": measure_spark,
    "exec": measure_exec_latency,
    "quality": lambda: [*measure_quality(), *measure_curves(), *measure_asks()],
}


def main(arguments: Sequence[str]) -> int:
    """Exit 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("only", nargs="*", choices=[[], *SECTIONS], help="sections to measure; all when none is named")
    chosen = parser.parse_args(arguments).only or list(SECTIONS)
    kept = True
    for section in chosen:
        rows = SECTIONS[section]()
        publish(section, rows)
        kept = kept and all(row.met is not False for row in rows)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
