from scheduling_service.storage.tables import METADATA
from servicekit.database import env_main

env_main(METADATA)
