"""The processes that think out what studies try next, and what starts, asks and ends them."""
