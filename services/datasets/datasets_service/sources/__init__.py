"""Reading what users point to: confined to the data roots, and with every core."""
