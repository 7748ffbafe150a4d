"""Apache Spark as an engine: a driver and barrier tasks of ours keep the ranks on the hosts of a Spark cluster."""
