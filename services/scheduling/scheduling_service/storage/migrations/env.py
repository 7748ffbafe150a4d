from scheduling_service.storage import execs  # noqa: F401  its table is one of METADATA
from scheduling_service.storage.tables import METADATA
from servicekit.database import env_main

env_main(METADATA)
